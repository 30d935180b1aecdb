// MlaPrepare: MlaStoreKv and Rope beside HeadLinear's product.
//
// A block first does its part of the product (gemm_kernel.h); where the product leaves
// multiprocessors free, further blocks, in front, have none. Then every warp of the grid takes its
// turn of what is to be stored and rotated, an item at a time: the tokens' entries
// (mla_store_token.h), then the rotations, 32 vectors of eight elements each (rope_vector.h).
// Nobody waits for anybody. The arithmetic is that of the three kernels, and so are the bits.
//
// Floor, DeepSeek-V2-Lite, 64 tokens: the product 3.4 MB, 1.1 us; entries and rotations 0.4 MB, 0.1
// us. An item waits for a few loads that need each other, about 0.9 us: 320 items for 1,056 warps,
// of which 288 have had a part in the product. Two launches fall away, and that two more kernels
// wait for loads of their own.
//
// Barriers: those of the product.
#include "cuda/mla_prepare.h"

#include "cuda/device/launch.h"
#include "cuda/gemm_kernel.h"
#include "cuda/mla_store_token.h"
#include "cuda/rope_vector.h"

namespace jevons::cuda {
namespace {

using device::Bf16;

// More items than this for each warp are better done by as many blocks as they fill.
constexpr int kMostItems = 4;
// A product of more tokens takes too long for two launches to show.
constexpr int kMostTileTokens = 64;

struct PrepareLaunch {
  MlaStoreLaunch store;
  RopeParams rope;
  bool rope_whole = false;
  GemmLaunch product;
};

// Items that rotate.
__host__ __device__ constexpr int64_t NumRotations(const RopeParams& p) {
  return (int64_t{p.num_tokens} * p.num_heads * NumVectors(p.d) + 31) / 32;
}

__device__ __forceinline__ void RotateItem(const PrepareLaunch& launch, int item) {
  const RopeParams& p = launch.rope;
  const int per_head = NumVectors(p.d);
  const int vector = item * 32 + device::LaneIdx();
  const int token = vector / (p.num_heads * per_head);
  if (token >= p.num_tokens) return;
  const int in_token = vector - token * p.num_heads * per_head;
  RopeVector<Bf16, Bf16>(p, launch.rope_whole, token, in_token / per_head, in_token % per_head);
}

__device__ __forceinline__ void StoreAndRotate(const PrepareLaunch& launch) {
  const int num_tokens = launch.rope.num_tokens;
  const int num_items = num_tokens + static_cast<int>(NumRotations(launch.rope));
  const int num_warps = device::GridDimX() * kGemmWarps;
  for (int item = device::BlockIdxX() * kGemmWarps + device::WarpIdx(); item < num_items;
       item += num_warps) {
    if (item < num_tokens) {
      MlaStoreToken(launch.store, item);
    } else {
      RotateItem(launch, item - num_tokens);
    }
  }
}

template <typename Traits>
__global__ void __launch_bounds__(kGemmThreads, Traits::kMinBlocks)
    MlaPrepareKernel(const __grid_constant__ PrepareLaunch launch) {
  // Never launched elsewhere: ChooseGemm.
  if constexpr (device::kHasWgmma || !Traits::kTogether) {
    if (device::BlockIdxX() >= launch.product.first_block) {
      GemmBlock<Traits> block(launch.product, &device::SharedMemory<unsigned char>());
      block.Run();
    }
  }
  device::FollowKernelBefore();  // those who had no part in it too
  StoreAndRotate(launch);
}

using Kernel = void (*)(PrepareLaunch);

template <GemmAtom kAtom>
Kernel FindKernel(int32_t tile_tokens) {
  return tile_tokens == 8    ? &MlaPrepareKernel<GemmTraits<WeightFormat::kBf16, 8, kAtom>>
         : tile_tokens == 32 ? &MlaPrepareKernel<GemmTraits<WeightFormat::kBf16, 32, kAtom>>
                             : &MlaPrepareKernel<GemmTraits<WeightFormat::kBf16, 64, kAtom>>;
}

bool HasKernel(const MlaPrepareParams& params) {
  return params.product.layout.format == WeightFormat::kBf16 &&
         params.rope.in_type == Element::kBF16 && params.rope.out_type == Element::kBF16;
}

cudaError_t LaunchThree(const MlaPrepareParams& params, const DeviceFacts& device,
                        cudaStream_t stream) {
  cudaError_t error = LaunchMlaStoreKv(params.store, device, stream);
  if (error == cudaSuccess) error = LaunchGemm(params.product, device, stream);
  if (error == cudaSuccess) error = LaunchRope(params.rope, device, stream);
  return error;
}

}  // namespace

MlaPreparePlan ChooseMlaPrepare(const MlaPrepareParams& params, const DeviceFacts& device) {
  MlaPreparePlan plan;
  if (params.rope.num_tokens <= 0 || !HasKernel(params)) return plan;
  const GemmPlan product = ChooseGemm(params.product, device);
  const int64_t num_items = params.rope.num_tokens + NumRotations(params.rope);
  const int64_t wanted = (num_items - 1) / kGemmWarps + 1;
  const int32_t num_free = product.resident_blocks - product.num_blocks;
  const int32_t row_blocks = wanted < num_free ? static_cast<int32_t>(wanted) : num_free;
  const int64_t num_warps = int64_t{kGemmWarps} * (row_blocks + product.num_blocks);
  if (product.num_blocks == 0 || product.tile_tokens > kMostTileTokens) return plan;
  if (num_items > kMostItems * num_warps) return plan;
  plan.at_once = true;
  plan.row_blocks = row_blocks;
  plan.store = ChooseMlaStoreKv(params.store);
  plan.rope = ChooseRope(params.rope);
  plan.product = product;
  return plan;
}

cudaError_t LaunchMlaPrepare(const MlaPrepareParams& params, const DeviceFacts& device,
                             cudaStream_t stream) {
  const MlaPreparePlan plan = ChooseMlaPrepare(params, device);
  if (!plan.at_once) return LaunchThree(params, device, stream);
  PrepareLaunch launch = {{params.store, plan.store},
                          params.rope,
                          plan.rope.whole,
                          MakeGemmLaunch(params.product, plan.product)};
  launch.product.first_block = plan.row_blocks;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.row_blocks + plan.product.num_blocks));
  shape.block = kGemmThreads;
  shape.smem_bytes = plan.product.smem_bytes;
  shape.early = device.early;
  const Kernel kernel = plan.product.atom == GemmAtom::kWgmma
                            ? FindKernel<GemmAtom::kWgmma>(plan.product.tile_tokens)
                            : FindKernel<GemmAtom::kMmaSync>(plan.product.tile_tokens);
  return Launch(kernel, shape, stream, launch);
}

}  // namespace jevons::cuda
