#include "cpu/reference_mla.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/reference_ops.h"

namespace jevons::reference {
namespace {

// Where the tokens of a step lie, the same in both forms.
struct Paging {
  TensorView cache;
  TensorView block_tables;
  TensorView cu_seqlens_q;
  TensorView context_lens;

  const float* Row(int64_t seq, int64_t position) const {
    const int64_t block_size = cache.dim(1);
    const int32_t block = block_tables.row<int32_t>(seq)[position / block_size];
    return cache.row<float>(block) + position % block_size * cache.stride[1];
  }
};

// Calls fn(seq, token, position) for each query token.
template <typename Fn>
void ForEachQuery(const Paging& paging, const Fn& fn) {
  const int32_t* cu = paging.cu_seqlens_q.ptr<int32_t>();
  for (int64_t s = 0; s < paging.context_lens.dim(0); ++s) {
    const int64_t first = paging.context_lens.ptr<int32_t>()[s] - (cu[s + 1] - cu[s]);
    for (int64_t i = 0; i < cu[s + 1] - cu[s]; ++i) fn(s, cu[s] + i, first + i);
  }
}

void Softmax(std::vector<double>& s) {
  const double largest = *std::max_element(s.begin(), s.end());
  double sum = 0;
  for (double& v : s) {
    v = std::exp(v - largest);
    sum += v;
  }
  for (double& v : s) v /= sum;
}

double Dot(const float* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

void MlaStoreKv(const MlaStoreKvArgs& args) {
  const int64_t r = args.norm_weight.dim(0);
  const int64_t p = args.kv.dim(1) - r;
  const int64_t block_size = args.cache.dim(1);
  for (int64_t t = 0; t < args.kv.dim(0); ++t) {
    const int64_t slot = args.slot_mapping.ptr<int64_t>()[t];
    const float* kv = args.kv.row<float>(t);
    float* entry = args.cache.row<float>(slot / block_size) + slot % block_size * (r + p);
    RmsNormRow(kv, args.norm_weight.ptr<float>(), args.eps, r, entry);
    RopeRow(kv + r, args.cos_sin.row<float>(args.positions.ptr<int32_t>()[t]), p, entry + r);
  }
}

void MlaAttention(const MlaAttentionArgs& args) {
  const Paging paging = {args.cache, args.block_tables, args.cu_seqlens_q, args.context_lens};
  const int64_t width = args.q.dim(2);
  ForEachQuery(paging, [&](int64_t seq, int64_t t, int64_t position) {
    for (int64_t h = 0; h < args.q.dim(1); ++h) {
      const float* q = args.q.row<float>(t) + h * args.q.stride[1];
      const std::vector<double> wide(q, q + width);
      std::vector<double> s;
      for (int64_t u = 0; u <= position; ++u) {
        s.push_back(args.scale * Dot(paging.Row(seq, u), wide.data(), width));
      }
      Softmax(s);
      std::vector<double> sum(args.out.dim(2));
      for (int64_t u = 0; u <= position; ++u) {
        for (size_t c = 0; c < sum.size(); ++c) sum[c] += s[u] * paging.Row(seq, u)[c];
      }
      std::copy(sum.begin(), sum.end(), args.out.row<float>(t) + h * args.out.stride[1]);
    }
  });
}

void MlaNaiveAttention(const MlaNaiveArgs& args) {
  const Paging paging = {args.cache, args.block_tables, args.cu_seqlens_q, args.context_lens};
  const int64_t v_dim = args.out.dim(2);
  const int64_t r = args.kv_b.dim(1);
  const int64_t p = args.cache.dim(2) - r;
  const int64_t nope = args.q.dim(2) - p;
  ForEachQuery(paging, [&](int64_t seq, int64_t t, int64_t position) {
    for (int64_t h = 0; h < args.q.dim(1); ++h) {
      const float* q = args.q.row<float>(t) + h * args.q.stride[1];
      const TensorView uk = args.kv_b.Slice(h * (nope + v_dim), nope);
      const TensorView uv = args.kv_b.Slice(h * (nope + v_dim) + nope, v_dim);
      std::vector<double> s;
      for (int64_t u = 0; u <= position; ++u) {
        const float* entry = paging.Row(seq, u);
        const std::vector<double> wide(entry, entry + r + p);
        double score = Dot(q + nope, wide.data() + r, p);
        for (int64_t i = 0; i < nope; ++i) score += q[i] * Dot(uk.row<float>(i), wide.data(), r);
        s.push_back(args.scale * score);
      }
      Softmax(s);
      std::vector<double> sum(v_dim);
      for (int64_t u = 0; u <= position; ++u) {
        const float* entry = paging.Row(seq, u);
        const std::vector<double> latent(entry, entry + r);
        for (int64_t i = 0; i < v_dim; ++i)
          sum[i] += s[u] * Dot(uv.row<float>(i), latent.data(), r);
      }
      std::copy(sum.begin(), sum.end(), args.out.row<float>(t) + h * args.out.stride[1]);
    }
  });
}

}  // namespace jevons::reference
