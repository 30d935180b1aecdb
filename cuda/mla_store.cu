// MlaStoreKv: latent = kv[:r] / sqrt(mean(kv[:r]^2) + eps) * weight and key = rope(kv[r:]) to the
// token's cache entry.
//
// One warp does one token (mla_store_token.h). 256 tokens of 512 + 64 move 256 * 2 * 1,152 B =
// 0.6 MB: latency decides, that of slot and position and then of the table's row.
#include "cuda/mla_store.h"

#include "cuda/device/launch.h"
#include "cuda/mla_store_token.h"

namespace jevons::cuda {
namespace {

constexpr int kTokensPerBlock = 4;  // warps
constexpr int kStoreThreads = kTokensPerBlock * 32;

__global__ void __launch_bounds__(kStoreThreads)
    MlaStoreKvKernel(const __grid_constant__ MlaStoreLaunch args) {
  device::FollowKernelBefore();
  const int64_t token =
      static_cast<int64_t>(device::BlockIdxX()) * kTokensPerBlock + device::WarpIdx();
  if (token < args.p.num_tokens) MlaStoreToken(args, token);
}

}  // namespace

MlaStorePlan ChooseMlaStoreKv(const MlaStoreKvParams& p) {
  MlaStorePlan plan;
  plan.grid = (p.num_tokens + kTokensPerBlock - 1) / kTokensPerBlock;
  plan.whole =
      RowsAllowVectors(p.kv, p.kv_stride, p.latent) &&
      RowsAllowVectors(p.norm_weight, 0, p.latent) &&
      (p.entry == MlaEntry::kFp8 || RowsAllowVectors(p.cache, p.latent + p.rope, p.latent));
  return plan;
}

cudaError_t LaunchMlaStoreKv(const MlaStoreKvParams& params, const DeviceFacts& device,
                             cudaStream_t stream) {
  const MlaStorePlan plan = ChooseMlaStoreKv(params);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.grid));
  shape.block = kStoreThreads;
  shape.early = device.early;
  return Launch(&MlaStoreKvKernel, shape, stream, MlaStoreLaunch{params, plan});
}

}  // namespace jevons::cuda
