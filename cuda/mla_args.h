// What the attention kernels share: their parameters, and the end of a row tile that was cut.
#pragma once

#include <cstdint>

#include "cuda/mla_merge.h"
#include "cuda/mla_walker.h"

namespace jevons::cuda::mla {

using device::Bf16;

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kRopePadded = 64;
constexpr int kSmallLatent = 64;
constexpr int kLargeLatent = 512;

__device__ __forceinline__ bool IsFinite(float value) {
  return (device::FloatBits(value) & 0x7F800000u) != 0x7F800000u;
}

struct AttentionParams {
  MlaAttentionParams p;
  MlaPlan plan;
  MlaWorkspace workspace;
};

__device__ __forceinline__ MlaOutput OutputOf(const AttentionParams& args) {
  const MlaAttentionParams& p = args.p;
  return {p.out, p.out_stride, p.out_head_stride, p.num_heads, p.latent, args.plan.out_pairs};
}

// The piece that comes last adds up what all have stored, and leaves the counter at zero. All
// threads of the block call. `positions` of the tile's rows and `is_last` are shared memory.
template <int kLatent, bool kWide>
__device__ __forceinline__ void ArriveAndMerge(const AttentionParams& args, const MlaItem& item,
                                               int32_t* positions, int32_t& is_last) {
  int32_t* arrivals = args.workspace.arrivals + item.slot;
  device::ThreadFence();
  device::SyncThreads();
  if (device::ThreadIdx() == 0) {
    is_last = device::AtomicAddAcqRel(arrivals, 1) == item.num_pieces - 1;
  }
  const int row = device::Opaque(device::ThreadIdx());
  if (row < item.num_rows) {
    positions[row] = item.first_position + (item.first_row + row) / args.p.num_heads;
  }
  device::SyncThreads();
  if (is_last == 0) return;
  if (kWide && row >= kMlaThreads) return;
  MlaMergeSplits<kLatent, kWide>(args.workspace, item, positions, OutputOf(args));
  if (device::ThreadIdx() == 0) *arrivals = 0;
}

}  // namespace jevons::cuda::mla
