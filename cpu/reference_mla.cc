#include "cpu/reference_mla.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/reference_ops.h"

namespace jevons::reference {
namespace {

Fp8Entry EntryOf(int64_t r, int64_t width) {
  return {static_cast<int32_t>(r), static_cast<int32_t>(width - r)};
}

// Where the tokens of a step lie, the same in both forms.
struct Paging {
  TensorView cache;
  TensorView block_tables;
  TensorView cu_seqlens_q;
  TensorView context_lens;

  // Latents and key of a token: `width` values, `r` of them latents.
  std::vector<float> Row(int64_t seq, int64_t position, int64_t r, int64_t width) const {
    const int64_t block_size = cache.dim(1);
    const int32_t block = block_tables.row<int32_t>(seq)[position / block_size];
    const int64_t at = block * cache.stride[0] + position % block_size * cache.stride[1];
    if (cache.dtype == DType::kF32) {
      return std::vector<float>(cache.ptr<float>() + at, cache.ptr<float>() + at + width);
    }
    std::vector<float> values(width);
    ReadFp8Entry(cache.ptr<uint8_t>() + at, EntryOf(r, width), values.data());
    return values;
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
  std::vector<float> entry(r + p);
  for (int64_t t = 0; t < args.kv.dim(0); ++t) {
    const float* kv = args.kv.row<float>(t);
    RmsNormRow(kv, args.norm_weight.ptr<float>(), args.eps, r, entry.data());
    RopeRow(kv + r, args.cos_sin.row<float>(args.positions.ptr<int32_t>()[t]), p, entry.data() + r);
    const int64_t at = args.slot_mapping.ptr<int64_t>()[t] * args.cache.dim(2);
    if (args.cache.dtype == DType::kF32) {
      std::copy(entry.begin(), entry.end(), args.cache.ptr<float>() + at);
    } else {
      WriteFp8Entry(entry.data(), EntryOf(r, r + p), args.cache.ptr<uint8_t>() + at);
    }
  }
}

void MlaAttention(const MlaAttentionArgs& args) {
  const Paging paging = {args.cache, args.block_tables, args.cu_seqlens_q, args.context_lens};
  const int64_t width = args.q.dim(2);
  const int64_t r = args.out.dim(2);
  ForEachQuery(paging, [&](int64_t seq, int64_t t, int64_t position) {
    std::vector<std::vector<float>> rows;
    for (int64_t u = 0; u <= position; ++u) rows.push_back(paging.Row(seq, u, r, width));
    for (int64_t h = 0; h < args.q.dim(1); ++h) {
      const float* q = args.q.row<float>(t) + h * args.q.stride[1];
      const std::vector<double> wide(q, q + width);
      std::vector<double> s;
      for (const std::vector<float>& row : rows) {
        s.push_back(args.scale * Dot(row.data(), wide.data(), width));
      }
      Softmax(s);
      std::vector<double> sum(r);
      for (int64_t u = 0; u <= position; ++u) {
        for (int64_t c = 0; c < r; ++c) sum[c] += s[u] * rows[u][c];
      }
      std::copy(sum.begin(), sum.end(), args.out.row<float>(t) + h * args.out.stride[1]);
    }
  });
}

void MlaNaiveAttention(const MlaNaiveArgs& args) {
  const Paging paging = {args.cache, args.block_tables, args.cu_seqlens_q, args.context_lens};
  const int64_t v_dim = args.out.dim(2);
  const int64_t r = args.kv_b.dim(1);
  const int64_t nope = args.kv_b.dim(0) / args.q.dim(1) - v_dim;
  const int64_t p = args.q.dim(2) - nope;
  ForEachQuery(paging, [&](int64_t seq, int64_t t, int64_t position) {
    for (int64_t h = 0; h < args.q.dim(1); ++h) {
      const float* q = args.q.row<float>(t) + h * args.q.stride[1];
      const TensorView uk = args.kv_b.Slice(h * (nope + v_dim), nope);
      const TensorView uv = args.kv_b.Slice(h * (nope + v_dim) + nope, v_dim);
      std::vector<double> s;
      for (int64_t u = 0; u <= position; ++u) {
        const std::vector<float> entry = paging.Row(seq, u, r, r + p);
        const std::vector<double> wide(entry.begin(), entry.end());
        double score = Dot(q + nope, wide.data() + r, p);
        for (int64_t i = 0; i < nope; ++i) score += q[i] * Dot(uk.row<float>(i), wide.data(), r);
        s.push_back(args.scale * score);
      }
      Softmax(s);
      std::vector<double> sum(v_dim);
      for (int64_t u = 0; u <= position; ++u) {
        const std::vector<float> latents = paging.Row(seq, u, r, r + p);
        const std::vector<double> latent(latents.begin(), latents.begin() + r);
        for (int64_t i = 0; i < v_dim; ++i)
          sum[i] += s[u] * Dot(uv.row<float>(i), latent.data(), r);
      }
      std::copy(sum.begin(), sum.end(), args.out.row<float>(t) + h * args.out.stride[1]);
    }
  });
}

}  // namespace jevons::reference
