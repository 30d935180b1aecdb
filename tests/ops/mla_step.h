// Steps of latent attention for tests of its ops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "ops/mla.h"
#include "tests/support/op_test.h"

namespace jevons {

struct MlaShape {
  int64_t num_heads;
  int64_t r;
  int64_t p;
  int64_t block_size;
  DType cache = DType::kF32;
  int64_t width() const { return r + p; }
  Fp8Entry fp8() const { return {static_cast<int32_t>(r), static_cast<int32_t>(p)}; }
  int64_t entry_size() const { return cache == DType::kU8 ? fp8().bytes() : width(); }
};

struct MlaSequence {
  int32_t context;
  int32_t num_queries;
};

// A paged cache in which only what the sequences hold is written, in blocks of random order, and
// queries for it.
class MlaStep {
 public:
  MlaStep(const MlaShape& shape, std::vector<MlaSequence> sequences, uint64_t seed = kOpTestSeed)
      : shape_(shape) {
    Random random(seed);
    int64_t max_blocks = 1;
    int64_t total_blocks = 2;
    std::vector<int32_t> cu = {0};
    std::vector<int32_t> contexts;
    for (const MlaSequence& s : sequences) {
      const int64_t blocks = (s.context + shape.block_size - 1) / shape.block_size;
      max_blocks = std::max(max_blocks, blocks);
      total_blocks += blocks;
      cu.push_back(cu.back() + s.num_queries);
      contexts.push_back(s.context);
    }
    std::vector<int32_t> order(total_blocks);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random.Below(i + 1)]);

    cache = TestTensor(shape.cache, {total_blocks, shape.block_size, shape.entry_size()});
    block_tables =
        TestTensor(DType::kI32, {static_cast<int64_t>(sequences.size()), max_blocks + 1});
    cu_seqlens_q = IntTensor(cu);
    context_lens = IntTensor(contexts);
    for (size_t s = 0; s < sequences.size(); ++s) {
      for (int32_t u = 0; u < sequences[s].context; ++u) {
        int32_t& block = Block(s, u);
        if (u % shape.block_size == 0) {
          block = order.back();
          order.pop_back();
        }
        std::vector<float> values(shape.width());
        for (float& value : values) value = TestValue(random.Normal());
        SetEntry(s, u, values);
      }
    }
    q = NormalTensor(random, {cu.back(), shape.num_heads, shape.width()}, 3);
  }

  void SetEntry(int64_t seq, int64_t position, const std::vector<float>& values) {
    if (shape_.cache == DType::kU8) {
      return WriteFp8Entry(values.data(), shape_.fp8(), &cache.at<uint8_t>(At(seq, position)));
    }
    std::copy(values.begin(), values.end(), &cache.at<float>(At(seq, position)));
  }
  // What is read of it.
  std::vector<float> Entry(int64_t seq, int64_t position) const {
    const int64_t at = At(seq, position);
    if (shape_.cache == DType::kF32) {
      const float* values = &cache.at<float>(at);
      return std::vector<float>(values, values + shape_.width());
    }
    std::vector<float> values(shape_.width());
    ReadFp8Entry(&cache.at<uint8_t>(at), shape_.fp8(), values.data());
    return values;
  }
  // The same step over a cache of floats that holds what is read of this one.
  MlaStep Decoded() const {
    MlaStep step = *this;
    step.shape_.cache = DType::kF32;
    step.cache = TestTensor(DType::kF32, {cache.view().dim(0), shape_.block_size, shape_.width()});
    for (int64_t s = 0; s < context_lens.size(); ++s) {
      for (int32_t u = 0; u < context_lens.at<int32_t>(s); ++u) step.SetEntry(s, u, Entry(s, u));
    }
    return step;
  }

  // Which errors are a part of.
  double LargestLatent() const {
    if (shape_.cache == DType::kU8) return Decoded().LargestLatent();
    double largest = 0;
    for (int64_t i = 0; i < cache.size(); ++i) {
      if (i % shape_.width() >= shape_.r || std::isnan(cache.Value(i))) continue;
      largest = std::max(largest, std::abs(cache.Value(i)));
    }
    return largest;
  }
  // With the same cache a step of `num_queries` queries of one sequence, from `first_query` of all
  // on, of which the last has position context - 1.
  TestTensor RunPart(Backend& backend, int64_t seq, int32_t context, int32_t first_query,
                     int32_t num_queries) const {
    MlaStep part = *this;
    part.cu_seqlens_q = IntTensor({0, num_queries});
    part.context_lens = IntTensor({context});
    TestTensor out(DType::kF32, {num_queries, shape_.num_heads, shape_.r});
    MlaAttentionArgs args = part.Args(out);
    args.q = q.view().Slice(first_query, num_queries);
    args.block_tables = block_tables.view().Slice(seq, 1);
    const absl::Status status = backend.MlaAttention(args);
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  MlaAttentionArgs Args(const TestTensor& out) const {
    // Scores with a spread of about 3: some keys matter, none alone.
    const float scale = 3 / std::sqrt(static_cast<float>(shape_.width()));
    return {q.view(), cache.view(), block_tables.view(), cu_seqlens_q.view(), context_lens.view(),
            scale,    out.view()};
  }

  TestTensor MakeOut() const {
    return TestTensor(DType::kF32, {q.view().dim(0), shape_.num_heads, shape_.r}, 2);
  }

  TestTensor Run(Backend& backend) const {
    TestTensor out = MakeOut();
    const absl::Status status = backend.MlaAttention(Args(out));
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  TestTensor q;
  TestTensor cache;
  TestTensor block_tables;
  TestTensor cu_seqlens_q;
  TestTensor context_lens;

 private:
  int32_t& Block(int64_t seq, int64_t position) const {
    return block_tables.view().row<int32_t>(seq)[position / shape_.block_size];
  }
  // The first element of a token's entry.
  int64_t At(int64_t seq, int64_t position) const {
    return (Block(seq, position) * shape_.block_size + position % shape_.block_size) *
           shape_.entry_size();
  }
  MlaShape shape_;
};

// Row `token` of the outputs of all heads.
inline std::vector<double> OutRow(const TestTensor& out, int64_t token) {
  const int64_t n = out.view().dim(1) * out.view().dim(2);
  std::vector<double> row;
  for (int64_t i = 0; i < n; ++i) row.push_back(out.Value(token * n + i));
  return row;
}

}  // namespace jevons
