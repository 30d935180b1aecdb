// The plain twins of latent attention: the absorbed form as the op has it, and the naive form with
// full keys and values, which must agree with it.
#pragma once

#include "ops/mla.h"

namespace jevons::reference {

// Arguments have passed Validate.
void MlaStoreKv(const MlaStoreKvArgs& args);
void MlaAttention(const MlaAttentionArgs& args);

// What    k[u, h] = [UK_h c_u, key_u], v[u, h] = UV_h c_u from the cache row (c_u, key_u);
//         out[t, h] = sum_u softmax_u(scale * q[t, h] . k[u, h]) * v[u, h], u = 0 .. position of t
// Shapes  q [num_tokens, num_heads, nope + p] f32, its last p rotated; kv_b [num_heads * (nope +
// v), r] f32, per head
//         first the nope rows of UK_h, then the v rows of UV_h; out [num_tokens, num_heads, v] f32;
//         the others as in MlaAttentionArgs
// Source  model-spec 2.3, the form that is not absorbed
struct MlaNaiveArgs {
  TensorView q;
  TensorView kv_b;
  TensorView cache;
  TensorView block_tables;
  TensorView cu_seqlens_q;
  TensorView context_lens;
  float scale = 0;
  TensorView out;
};
void MlaNaiveAttention(const MlaNaiveArgs& args);

}  // namespace jevons::reference
