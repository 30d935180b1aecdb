// Multi-head latent attention over the paged cache, absorbed form: one latent per token for all
// heads. An entry of the cache is r latents and p rotated-key values, in the backend's own type (f32
// below) or, on every backend, an Fp8Entry: the cache is then u8 [num_blocks, block_size,
// Fp8Entry{r, p}.bytes()], aligned to Fp8Entry::kPart.
#pragma once

#include "base/tensor_view.h"
#include "ops/elementwise.h"
#include "ops/fp8_entry.h"
#include "ops/linear.h"

namespace jevons {

// What    per token: latent = rms(kv[:r]; norm_weight, eps), key = rope(kv[r:]);
//         both go to the cache at its slot
// Shapes  kv [num_tokens, r + p] f32, row stride free; norm_weight [r] f32;
//         positions i32 [num_tokens]; cos_sin f32 [max_positions, p];
//         slot_mapping i64 [num_tokens] = block * block_size + offset;
//         cache [num_blocks, block_size, r + p] f32
// Edge    nothing else in the cache is touched
// Order   as RmsNorm and Rope; an FP8 group depends on its own token alone
// Error   as RmsNorm and Rope, then that of the entry: see Fp8Entry
struct MlaStoreKvArgs {
  TensorView kv;
  TensorView norm_weight;
  float eps = 0;
  TensorView positions;
  TensorView cos_sin;
  TensorView slot_mapping;
  TensorView cache;
};

// What    MlaStoreKv; out[t, h, :r] = UK_h q[t, h, :nope]; out[t, h, r:] = rope(q[t, h, nope:]):
//         all that attention wants of a step's tokens
// Shapes  as MlaStoreKv; q [num_tokens, num_heads, nope + p] f32, out
//         [num_tokens, num_heads, r + p] f32, outer strides free; uk of num_heads groups [r, nope].
//         out overlaps neither q nor kv
// Edge, Order, Error as MlaStoreKv, HeadLinear and Rope, one after the other
struct MlaPrepareArgs {
  MlaStoreKvArgs store;
  TensorView q;
  const Weight* uk = nullptr;
  TensorView out;

  // The other two steps, of arguments that are valid. No step reads what another one writes.
  HeadLinearArgs product() const {
    return {.x = q.Columns(0, uk->k()), .weight = uk, .out = out.Columns(0, uk->n())};
  }
  RopeArgs rotation() const {
    const int64_t p = store.cos_sin.dim(1);
    return {.x = q.Columns(uk->k(), p),
            .positions = store.positions,
            .cos_sin = store.cos_sin,
            .out = out.Columns(uk->n(), p)};
  }
};

// What    out[t, h] = sum_u softmax_u(scale * q[t, h] . cache[u]) * cache[u][:r],
//         u = 0 .. position of t
// Shapes  q [num_tokens, num_heads, r + p] f32, outer strides free;
//         cache [num_blocks, block_size, r + p] f32; block_tables i32 [num_seqs, max_blocks];
//         cu_seqlens_q i32 [num_seqs + 1]; context_lens i32 [num_seqs], the tokens in the cache
//         with those of this step; out [num_tokens, num_heads, r] f32, outer strides free.
//         Row i of sequence s has position
//         context_lens[s] - (cu_seqlens_q[s + 1] - cu_seqlens_q[s]) + i
// Edge    a sequence without queries is skipped; unused cache may hold NaN and is never read into
//         a sum
// Order   keys in tiles and tiles in splits whose bounds depend on the position alone, the splits'
//         partial results merged in order: bitwise equal however the prompt was chunked and whatever
//         shares the batch. On the CPU a tile is a block and a split kMlaChunkBlocks blocks
// Error   kMlaAttentionTolerance of the largest |latent| against fp64; kMlaAttentionBf16Tolerance
//         where q is bf16, which weights and result are rounded to. An FP8 cache counts as what it
//         reads as
// Source  model-spec 2.3
struct MlaAttentionArgs {
  TensorView q;
  TensorView cache;
  TensorView block_tables;
  TensorView cu_seqlens_q;
  TensorView context_lens;
  float scale = 0;
  TensorView out;
};
inline constexpr double kMlaAttentionTolerance = 2e-5;
inline constexpr double kMlaAttentionBf16Tolerance = 0x1p-7;
inline constexpr int32_t kMlaChunkBlocks = 4;

// What    MlaAttention; out[t, h] = UV_h attention.out[t, h]
// Shapes  as MlaAttention, whose out may be left as it was; uv of num_heads groups [v, r]; out
//         [num_tokens, num_heads, v] f32, outer strides free
// Edge, Error as MlaAttention and HeadLinear, one after the other
// Order   as they; the sum over r of a row depends on r alone, but a backend may have another one
//         here than for HeadLinear
struct MlaValuesArgs {
  MlaAttentionArgs attention;
  const Weight* uv = nullptr;
  TensorView out;

  // The other step.
  HeadLinearArgs product() const { return {.x = attention.out, .weight = uv, .out = out}; }
};

}  // namespace jevons
