// PackRows and UnpackRows: rows as FP8 and back. Contracts in ops/exchange.h.
//
// A block has a row, a warp one group of 128 values after the other: its largest decides the scale. 64 rows
// of V3 are 0.9 MB in bf16 and 0.5 MB packed: latency decides, that of the index and then of the values.
//
// No barriers: warps share nothing.
#include "cuda/packed_rows.h"

#include "cuda/device/launch.h"
#include "cuda/device/numeric.h"
#include "cuda/device/thread.h"
#include "cuda/device/warp.h"
#include "ops/fp8_entry.h"

namespace jevons::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerLane = kFp8Group / 32;

__device__ __forceinline__ void PackGroup(const device::Bf16* x, bool known, int group,
                                          const Fp8Entry& layout, uint8_t* entry) {
  float v[kPerLane];
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int at = group * kFp8Group + i * 32 + device::LaneIdx();
    v[i] = x != nullptr && at < layout.r ? device::ToFloat(x[at]) : 0.0f;
    if (!known) v[i] = device::FloatFromBits(0x7FC00000u);
    largest = max(largest, Fp8Magnitude(v[i]));
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = max(largest, device::ShflXor(largest, distance));
  }
  const float scale = Fp8Scale(largest);
  // Behind the row's end lies what fills the values up.
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int at = group * kFp8Group + i * 32 + device::LaneIdx();
    if (at < layout.scales()) entry[at] = at < layout.r ? ToFp8(v[i], scale) : uint8_t{0};
  }
  if (device::LaneIdx() == 0) {
    reinterpret_cast<float*>(entry + layout.scales())[group] = scale;
  }
}

__global__ void __launch_bounds__(kThreads)
    PackRowsKernel(const __grid_constant__ PackRowsParams p) {
  device::FollowKernelBefore();
  const Fp8Entry layout = {p.width, 0};
  const int64_t row = device::BlockIdxX();
  const int32_t token = p.row_idx[row];
  const bool known = token >= -1 && token < p.num_source_rows;
  const device::Bf16* x =
      token >= 0 && known ? static_cast<const device::Bf16*>(p.x) + token * p.x_stride : nullptr;
  uint8_t* entry = p.out + row * layout.bytes();
  const int num_warps = device::BlockDim() / 32;
  for (int group = device::WarpIdx(); group < layout.num_groups(); group += num_warps) {
    PackGroup(x, known, group, layout, entry);
  }
  float* scales = reinterpret_cast<float*>(entry + layout.scales());
  const int num_scales = (layout.bytes() - layout.scales()) / 4;
  for (int i = layout.num_groups() + device::ThreadIdx(); i < num_scales; i += device::BlockDim()) {
    scales[i] = 0;
  }
}

__global__ void __launch_bounds__(kThreads)
    UnpackRowsKernel(const __grid_constant__ UnpackRowsParams p) {
  device::FollowKernelBefore();
  const Fp8Entry layout = {p.width, 0};
  const int64_t row = device::BlockIdxX();
  const uint8_t* entry = p.x + row * layout.bytes();
  const float* scales = reinterpret_cast<const float*>(entry + layout.scales());
  device::Bf16* out = static_cast<device::Bf16*>(p.out) + row * p.out_stride;
  for (int i = device::ThreadIdx(); i < p.width; i += device::BlockDim()) {
    out[i] = device::ToBf16(FromFp8(entry[i], scales[i / kFp8Group]));
  }
}

LaunchShape RowShape(int32_t num_rows, const DeviceFacts& device) {
  LaunchShape shape;
  shape.early = device.early;
  shape.grid = dim3(static_cast<unsigned>(num_rows));
  shape.block = kThreads;
  return shape;
}

}  // namespace

cudaError_t LaunchPackRows(const PackRowsParams& p, const DeviceFacts& device,
                           cudaStream_t stream) {
  return Launch(&PackRowsKernel, RowShape(p.num_rows, device), stream, p);
}

cudaError_t LaunchUnpackRows(const UnpackRowsParams& p, const DeviceFacts& device,
                             cudaStream_t stream) {
  return Launch(&UnpackRowsKernel, RowShape(p.num_rows, device), stream, p);
}

}  // namespace jevons::cuda
