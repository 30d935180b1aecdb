// What a product with FP8 on both sides reads. The packed order of a weight serves two instructions
// (gemm_layout.h), so the tokens take the order that it has for the second: half a warp has a group of
// 128 columns, a lane eight of them, and two neighbours exchange pairs so that each writes eight bytes.
//
// Bytes decide: 4,096 rows of 7168 are 59 MB of bf16 and 30 MB of FP8, 30 us at 3.0 TB/s, where the
// experts' two products of V3 take 4 ms. One row is a boundary more: about 1.3 us.
#include "cuda/round_rows.h"

#include "cuda/device/launch.h"
#include "cuda/device/thread.h"
#include "cuda/device/warp.h"
#include "cuda/gemm_layout.h"
#include "cuda/row_vector.h"

namespace jevons::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroupLanes = kFp8Group / kRowVector;

struct RoundRowsLaunch {
  RoundRowsParams p;
  bool whole = false;  // RowsAllowVectors of x
};

static_assert(Fp8Place(2) == 4 && Fp8Place(3) == 5 && Fp8Place(8) == 2 && Fp8Place(27) == 16 + 7);
// The four pairs of bytes of this lane and of its neighbour, which have 16 columns, become two words of
// each: columns 2 i, 2 i + 1, 2 i + 8, 2 i + 9 in word i.
__device__ __forceinline__ uint2 InOrderOfProduct(uint32_t first, uint32_t second) {
  const bool upper = device::LaneIdx() % 2 == 1;
  const uint32_t got = device::ShflXor(upper ? first : second, 1);
  const uint32_t low = upper ? got : first;
  const uint32_t high = upper ? second : got;
  return make_uint2(device::PermuteBytes(low, high, 0x5410u),
                    device::PermuteBytes(low, high, 0x7632u));
}

template <bool kAsFp8>
__global__ void __launch_bounds__(kThreads)
    RoundRowsKernel(const __grid_constant__ RoundRowsLaunch launch) {
  device::FollowKernelBefore();
  const RoundRowsParams& p = launch.p;
  const Fp8Entry layout = {p.width, 0};
  const int64_t task =
      (int64_t{device::BlockIdxX()} * kThreads + device::ThreadIdx()) / kGroupLanes;
  const int64_t row = task / layout.num_groups();
  const int group = static_cast<int>(task - row * layout.num_groups());
  const int vector = group * kGroupLanes + device::LaneIdx() % kGroupLanes;
  const int num_rows = p.row_limit == nullptr ? p.num_rows : Min(p.num_rows, p.row_limit[0]);
  const bool there = row < num_rows && vector * kRowVector < p.width;

  float v[kRowVector] = {};
  if (there) {
    LoadVector(static_cast<const device::Bf16*>(p.x) + row * p.x_stride, vector, p.width,
               launch.whole, v);
  }
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kRowVector; ++i) largest = max(largest, Fp8Magnitude(v[i]));
#pragma unroll
  for (int distance = kGroupLanes / 2; distance > 0; distance /= 2) {
    largest = max(largest, device::ShflXor(largest, distance));
  }
  const float scale = Fp8Scale(largest);
  unsigned char* const out =
      static_cast<unsigned char*>(p.out) + row * RoundedRowBytes(p.width, kAsFp8);
  if constexpr (!kAsFp8) {
#pragma unroll
    for (float& value : v) value = FromFp8(ToFp8(value, scale), scale);
    if (there) StoreWhole(v, reinterpret_cast<device::Bf16*>(out) + vector * kRowVector);
    return;
  }
  uint32_t four[2] = {};
#pragma unroll
  for (int i = 0; i < kRowVector; ++i) {
    four[i / 4] |= static_cast<uint32_t>(ToFp8(v[i], scale)) << (i % 4 * 8);
  }
  const uint2 words = InOrderOfProduct(four[0], four[1]);
  // What fills the row up to 16 columns is written too.
  if (row < num_rows && vector * kRowVector < layout.scales()) {
    reinterpret_cast<uint2*>(out)[vector] = words;
  }
  if (there && device::LaneIdx() % kGroupLanes == 0) {
    reinterpret_cast<float*>(out + layout.scales())[group] = scale;
  }
}

}  // namespace

cudaError_t LaunchRoundRows(const RoundRowsParams& p, const DeviceFacts& device,
                            cudaStream_t stream) {
  const int64_t groups = int64_t{p.num_rows} * Fp8Entry{p.width, 0}.num_groups();
  LaunchShape shape;
  shape.early = device.early;
  shape.grid = dim3(static_cast<unsigned>((groups * kGroupLanes + kThreads - 1) / kThreads));
  shape.block = kThreads;
  const RoundRowsLaunch launch = {p, RowsAllowVectors(p.x, p.x_stride, p.width)};
  return Launch(p.as_fp8 ? &RoundRowsKernel<true> : &RoundRowsKernel<false>, shape, stream, launch);
}

}  // namespace jevons::cuda
