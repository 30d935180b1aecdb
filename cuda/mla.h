// Latent attention over the paged cache. The mathematics are those of ops/mla.h; here stands what
// the CUDA version adds. Strides are in elements, index arrays lie in device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/device/bf16.h"
#include "cuda/device_facts.h"
#include "cuda/gemm_layout.h"

namespace jevons::cuda {

// What an entry of the cache is.
enum class MlaEntry : int32_t { kBf16, kFp8 };

// What    out[t, h] = UV_h attended[t, h]
// Shapes  weight: a group for each head as gemm_layout.h says, bf16, RowOrder::kPlain, k = latent,
//         16-byte aligned; out bf16 [num_tokens, num_heads, n]
// Order   that of gemm.h with GemmAtom::kMmaSync
struct MlaValuesParams {
  const void* weight = nullptr;  // null: none are wanted
  PackedLayout layout;
  device::Bf16* out = nullptr;
  int64_t stride = 0;  // from token to token
  int64_t head_stride = 0;
};

// What    out[t, h] = sum_u softmax_u(scale * q[t, h] . cache[u]) * cache[u][:latent],
//         u = 0 .. position of t
// Shapes  q bf16 [num_tokens, num_heads, latent + rope]; cache [num_blocks, block_size] entries, no
//         gaps: latent + rope bf16 or Fp8Entry{latent, rope}; block_tables i32 [num_seqs,
//         max_blocks]; cu_seqlens_q i32 [num_seqs + 1]; context_lens i32 [num_seqs]; out bf16
//         [num_tokens, num_heads, latent]. latent <= 512, rope <= 64, scale > 0. Row i of sequence
//         s has position context_lens[s] - (cu_seqlens_q[s + 1] - cu_seqlens_q[s]) + i
// Edge    a sequence without queries, or whose queries are not rows of q, is skipped; a context
//         shorter than the queries or longer than the block table gives NaN in its rows; so does
//         a block id outside [0, num_blocks) or a latent that is not finite, in the rows that see
//         it. Entries past a row's position are never read into its sums
// Order   splits of the keys at fixed positions (mla_splits.h), each split in tiles of 64 keys with
//         a running maximum, splits added in ascending order: a row has the same bits alone, in any
//         batch, however the prompt was chunked, and whatever the grid
//         An FP8 entry goes on as the bf16 that it reads as: with latent = 64 or 512 the bits are
//         those of a bf16 cache with these values
// Error   scores and sums f32, weights rounded to bf16 before both the sum of the weights and the
//         weighted sum: a few bf16 steps of the largest |latent|
// The workspace must be zero before its first use; each launch leaves its counters zero. Launches
// that may run at the same time need their own.
struct MlaAttentionParams {
  const device::Bf16* q = nullptr;
  const void* cache = nullptr;  // FP8: aligned to 16 bytes
  const int32_t* block_tables = nullptr;
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* context_lens = nullptr;
  device::Bf16* out = nullptr;
  void* workspace = nullptr;  // MlaWorkspaceBytes, 256-byte aligned
  float scale = 0;
  MlaEntry entry = MlaEntry::kBf16;
  int32_t num_tokens = 0;
  int32_t num_seqs = 0;
  int32_t num_heads = 0;
  int32_t latent = 0;
  int32_t rope = 0;
  int32_t num_blocks = 0;
  int32_t block_size = 0;
  int32_t max_blocks = 0;
  int32_t num_slots = 0;  // of the workspace
  int64_t q_stride = 0;   // from token to token
  int64_t q_head_stride = 0;
  int64_t table_stride = 0;
  int64_t out_stride = 0;
  int64_t out_head_stride = 0;
  MlaValuesParams values;  // of what attention leaves in out
};

struct MlaPlan {
  int32_t latent = 0;  // padded: 64 or 512
  int32_t keys = 0;    // of one tile
  int32_t grid = 0;
  int32_t smem_bytes = 0;
  int32_t q_unit = 0;      // bytes that a copy of q may move at once: 16, 4 or 2
  int32_t cache_unit = 0;  // the same for the cache; FP8: 16
  bool wide = false;       // MlaIsWide: mla_wide.h
  bool out_pairs = false;  // out may be written two elements at a time
  // Of an FP8 entry.
  int32_t entry_bytes = 0;
  int32_t entry_scales = 0;
  int32_t entry_keys = 0;
  // The last blocks of the grid, which make the values; 0: nobody does.
  int32_t value_blocks = 0;
};

// Whether rows are taken 64 at a time, with other splits: a matter of model and device alone.
bool MlaIsWide(const MlaAttentionParams& params, const DeviceFacts& device);

// Places for 16 rows of partial results with which no sequence goes uncut that should be cut.
// Fewer are allowed, where MlaIsWide down to four for each multiprocessor: then sequences go uncut,
// with the same results.
int32_t MlaNumSlots(int32_t num_heads, const DeviceFacts& device);
int64_t MlaWorkspaceBytes(int32_t latent, int32_t num_slots);

// Values come from the same launch where few tokens want them, and out is not written whole; where
// value_blocks is 0 the caller makes them of out.
MlaPlan ChooseMlaAttention(const MlaAttentionParams& params, const DeviceFacts& device);
cudaError_t LaunchMlaAttention(const MlaAttentionParams& params, const DeviceFacts& device,
                               cudaStream_t stream);

}  // namespace jevons::cuda
