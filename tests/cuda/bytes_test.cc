// What limits a decoding step is the memory that it reads: weights and cache come over once, and
// nothing that is not needed comes at all. The emulator counts the bytes that kernels stream.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "cuda/cuda_weight.h"
#include "tests/cuda/backend_fixture.h"
#include "tests/support/test_weight.h"

namespace jevons {
namespace {

constexpr double kMostRead = 1.02;  // of what is needed

class BytesTest : public CudaBackendTest {
 protected:
  DeviceTensor Ints(const std::vector<int32_t>& values) { return Upload(IntTensor(values)); }

  // Groups of `parts` parts of `rows` rows each.
  std::unique_ptr<Weight> PackGroups(const StoredAs& stored, int32_t num_groups, int32_t parts,
                                     int64_t rows, int64_t k) {
    TestWeight weight(random_, stored.dtype, num_groups, std::vector<int64_t>(parts, rows), k);
    if (parts == 2) weight.ForGatedUp();
    return weight.RoundInput(stored.input).Pack(*backend_);
  }

  // Bytes that `op` streams from the allocation that holds `data`.
  int64_t BytesRead(const void* data, absl::FunctionRef<absl::Status()> op) {
    Wait();
    emu::ResetCounters();
    const absl::Status status = op();
    EXPECT_TRUE(status.ok()) << status;
    Wait();
    return emu::GlobalBytesRead(data);
  }

  void ExpectOnce(int64_t read, int64_t needed) {
    EXPECT_GE(read, needed);
    EXPECT_LE(static_cast<double>(read), kMostRead * static_cast<double>(needed))
        << static_cast<double>(read) / static_cast<double>(needed) << " times what is needed";
  }

  static const void* DataOf(const Weight& weight) {
    return static_cast<const cuda::CudaWeight&>(weight).data();
  }

 private:
  void Wait() {
    char nothing = 0;
    const TensorView none(&nothing, DType::kU8, {0});
    const absl::Status status = backend_->Read(none, none);
    EXPECT_TRUE(status.ok()) << status;
  }
};

// Rows of a step that decodes; sizes that are whole tiles, and some that are not.
const int64_t kRows[] = {1, 7, 8, 9, 32};
struct Size {
  int64_t n;
  int64_t k;
};
const Size kSizes[] = {{64, 64}, {192, 512}, {320, 1088}};

struct BytesCase {
  StoredAs stored;
  int64_t rows;
  Size size;

  int64_t bytes() const { return size.n * size.k * DTypeBytes(stored.dtype); }
};

std::vector<BytesCase> Cases() {
  std::vector<BytesCase> cases;
  for (const StoredAs& stored : kStoredAs) {
    for (const Size& size : kSizes) {
      for (int64_t rows : kRows) cases.push_back({stored, rows, size});
    }
  }
  return cases;
}

std::string NameOf(const BytesCase& c) {
  return c.stored.name() + "_" + std::to_string(c.size.n) + "_" + std::to_string(c.size.k) +
         "_for_" + std::to_string(c.rows);
}

TEST_F(BytesTest, LinearReadsItsWeightOnce) {
  for (const BytesCase& c : Cases()) {
    SCOPED_TRACE(NameOf(c));
    const auto weight = PackGroups(c.stored, 1, 1, c.size.n, c.size.k);
    const DeviceTensor x = Normal(DType::kBF16, {c.rows, c.size.k});
    const DeviceTensor out = Normal(DType::kF32, {c.rows, c.size.n});
    const int64_t read = BytesRead(DataOf(*weight), [&] {
      return backend_->Linear({.x = x.view, .weight = weight.get(), .bias = {}, .out = out.view});
    });
    ExpectOnce(read, c.bytes());
  }
}

TEST_F(BytesTest, GatedUpReadsItsWeightOnce) {
  for (const BytesCase& c : Cases()) {
    SCOPED_TRACE(NameOf(c));
    const auto weight = PackGroups(c.stored, 1, 2, c.size.n / 2, c.size.k);
    const DeviceTensor x = Normal(DType::kBF16, {c.rows, c.size.k});
    const DeviceTensor out = Normal(DType::kBF16, {c.rows, c.size.n / 2});
    const int64_t read = BytesRead(DataOf(*weight), [&] {
      return backend_->GatedUp({.x = x.view,
                                .cu_rows = {},
                                .row_idx = {},
                                .weight = weight.get(),
                                .workspace = {},
                                .out = out.view});
    });
    ExpectOnce(read, c.bytes());
  }
}

TEST_F(BytesTest, HeadLinearReadsTheWeightOfEachHeadOnce) {
  constexpr int32_t kHeads = 3;
  for (const BytesCase& c : Cases()) {
    if (c.stored.rounds_input()) continue;  // not for heads
    SCOPED_TRACE(NameOf(c));
    const auto weight = PackGroups(c.stored, kHeads, 1, c.size.n, c.size.k);
    const DeviceTensor x = Normal(DType::kBF16, {c.rows, kHeads, c.size.k});
    const DeviceTensor out = Normal(DType::kBF16, {c.rows, kHeads, c.size.n});
    const int64_t read = BytesRead(DataOf(*weight), [&] {
      return backend_->HeadLinear({.x = x.view, .weight = weight.get(), .out = out.view});
    });
    ExpectOnce(read, kHeads * c.bytes());
  }
}

TEST_F(BytesTest, MlaPrepareReadsTheWeightOfEachHeadOnce) {
  constexpr int32_t kHeads = 3;
  constexpr int64_t kRope = 16;
  const DeviceTensor table = Normal(DType::kF32, {4, kRope});
  for (const BytesCase& c : Cases()) {
    if (c.stored.dtype != DType::kBF16) continue;  // the others go to HeadLinear's kernel
    SCOPED_TRACE(NameOf(c));
    const auto uk = PackGroups(c.stored, kHeads, 1, c.size.n, c.size.k);
    const DeviceTensor kv = Normal(DType::kBF16, {c.rows, c.size.n + kRope});
    const DeviceTensor norm = Normal(DType::kF32, {c.size.n});
    const DeviceTensor positions = Ints(std::vector<int32_t>(c.rows, 2));
    const DeviceTensor slots = Upload(TestTensor(DType::kI64, {c.rows}));
    const DeviceTensor cache = Normal(DType::kBF16, {1, 8, c.size.n + kRope});
    const DeviceTensor q = Normal(DType::kBF16, {c.rows, kHeads, c.size.k + kRope});
    const DeviceTensor out = Normal(DType::kBF16, {c.rows, kHeads, c.size.n + kRope});
    const int64_t read = BytesRead(DataOf(*uk), [&] {
      return backend_->MlaPrepare(
          {.store = {kv.view, norm.view, 1e-6f, positions.view, table.view, slots.view, cache.view},
           .q = q.view,
           .uk = uk.get(),
           .out = out.view});
    });
    ExpectOnce(read, kHeads * c.bytes());
  }
}

TEST_F(BytesTest, MlaValuesReadTheWeightOfEachHeadOnce) {
  constexpr int32_t kHeads = 3;
  constexpr int64_t kRope = 16;
  for (const Size& size : {Size{128, 512}, Size{64, 64}, Size{192, 320}}) {
    for (int32_t rows : {1, 5, 8}) {
      const BytesCase c = {{}, rows, size};
      SCOPED_TRACE(NameOf(c));
      const auto uv = PackGroups(c.stored, kHeads, 1, size.n, size.k);
      const DeviceTensor q = Normal(DType::kBF16, {rows, kHeads, size.k + kRope});
      const DeviceTensor cache = Normal(DType::kBF16, {2, 16, size.k + kRope});
      const DeviceTensor table = Upload(TestTensor(DType::kI32, {1, 2}).Fill<int32_t>({1, 0}));
      const DeviceTensor cu = Ints({0, rows});
      const DeviceTensor contexts = Ints({20});
      const DeviceTensor attended = Normal(DType::kBF16, {rows, kHeads, size.k});
      const DeviceTensor out = Normal(DType::kBF16, {rows, kHeads, size.n});
      const int64_t read = BytesRead(DataOf(*uv), [&] {
        return backend_->MlaValues({.attention = {.q = q.view,
                                                  .cache = cache.view,
                                                  .block_tables = table.view,
                                                  .cu_seqlens_q = cu.view,
                                                  .context_lens = contexts.view,
                                                  .scale = 0.1f,
                                                  .out = attended.view},
                                    .uv = uv.get(),
                                    .out = out.view});
      });
      EXPECT_EQ(read, kHeads * c.bytes());
    }
  }
}

// Rows of each expert; most have none.
struct Spread {
  std::vector<int32_t> rows;

  int32_t num_groups() const { return static_cast<int32_t>(rows.size()); }
  int32_t num_rows() const {
    int32_t sum = 0;
    for (int32_t n : rows) sum += n;
    return sum;
  }
  int32_t num_active() const {
    int32_t count = 0;
    for (int32_t n : rows) count += n > 0;
    return count;
  }
  std::vector<int32_t> CuRows() const {
    std::vector<int32_t> cu = {0};
    for (int32_t n : rows) cu.push_back(cu.back() + n);
    return cu;
  }
};
const Spread kSpreads[] = {{{0, 0, 0, 0, 1, 0, 0, 0}},
                           {{1, 0, 0, 1, 0, 0, 1, 1}},
                           {{0, 0, 3, 0, 0, 2, 0, 0, 8, 0, 0, 0}},
                           {{1, 2, 1, 1, 3, 1}},
                           {{0, 0, 0}}};

TEST_F(BytesTest, GroupedGemmReadsOnlyTheExpertsThatHaveRows) {
  for (const StoredAs& stored : kStoredAs) {
    for (const Size& size : kSizes) {
      for (const Spread& spread : kSpreads) {
        const BytesCase c = {stored, spread.num_rows(), size};
        SCOPED_TRACE(NameOf(c) + " rows of " + std::to_string(spread.num_active()) + " experts");
        const auto weight = PackGroups(stored, spread.num_groups(), 1, size.n, size.k);
        // A padded step has more rows than its experts.
        const DeviceTensor x = Normal(DType::kBF16, {c.rows + 3, size.k});
        const DeviceTensor out = Normal(DType::kBF16, {c.rows + 3, size.n});
        const DeviceTensor cu_rows = Ints(spread.CuRows());
        const int64_t read = BytesRead(DataOf(*weight), [&] {
          return backend_->GroupedGemm({.x = x.view,
                                        .cu_rows = cu_rows.view,
                                        .row_idx = {},
                                        .weight = weight.get(),
                                        .out = out.view});
        });
        EXPECT_EQ(read, spread.num_active() * c.bytes());
      }
    }
  }
}

TEST_F(BytesTest, GatedUpReadsOnlyTheExpertsThatHaveRows) {
  for (const StoredAs& stored : kStoredAs) {
    for (const Spread& spread : kSpreads) {
      const BytesCase c = {stored, spread.num_rows(), {192, 512}};
      SCOPED_TRACE(NameOf(c) + " rows of " + std::to_string(spread.num_active()) + " experts");
      const auto weight = PackGroups(stored, spread.num_groups(), 2, c.size.n / 2, c.size.k);
      const DeviceTensor x = Normal(DType::kBF16, {c.rows + 3, c.size.k});
      const DeviceTensor out = Normal(DType::kBF16, {c.rows + 3, c.size.n / 2});
      const DeviceTensor cu_rows = Ints(spread.CuRows());
      const int64_t read = BytesRead(DataOf(*weight), [&] {
        return backend_->GatedUp({.x = x.view,
                                  .cu_rows = cu_rows.view,
                                  .row_idx = {},
                                  .weight = weight.get(),
                                  .workspace = {},
                                  .out = out.view});
      });
      EXPECT_EQ(read, spread.num_active() * c.bytes());
    }
  }
}

TEST_F(BytesTest, NormAndRouteOfASmallStepReadsTheRouterOnce) {
  constexpr int32_t kTopK = 4;
  for (const Size& size : {Size{64, 64}, Size{80, 512}, Size{256, 1088}}) {
    for (int64_t rows : {1, 5, 8}) {
      const BytesCase c = {{}, rows, size};
      SCOPED_TRACE(NameOf(c));
      const auto router = PackGroups(c.stored, 1, 1, c.size.n, c.size.k);
      const DeviceTensor x = Normal(DType::kF32, {rows, c.size.k});
      const DeviceTensor delta = Normal(DType::kF32, {rows, c.size.k});
      const DeviceTensor norm = Normal(DType::kF32, {c.size.k});
      const DeviceTensor out = Normal(DType::kBF16, {rows, c.size.k});
      const DeviceTensor logits = Normal(DType::kF32, {rows, c.size.n});
      const DeviceTensor ids = Upload(TestTensor(DType::kI32, {rows, kTopK}));
      const DeviceTensor weights = Normal(DType::kF32, {rows, kTopK});
      NormAndRouteArgs args;
      args.norm = {x.view, delta.view, norm.view, 1e-6f, out.view};
      args.router = router.get();
      args.route.logits = logits.view;
      args.route.topk_idx = ids.view;
      args.route.topk_weights = weights.view;
      ExpectOnce(BytesRead(DataOf(*router), [&] { return backend_->NormAndRoute(args); }),
                 c.bytes());
      // So does the product in front, in one kernel with it or not.
      const auto output = PackGroups(c.stored, 1, 1, c.size.k, 128);
      const DeviceTensor attended = Normal(DType::kBF16, {rows, 128});
      const LinearAndRouteArgs both = {{attended.view, output.get(), {}, delta.view}, args};
      for (const Weight* weight : {output.get(), router.get()}) {
        ExpectOnce(BytesRead(DataOf(*weight), [&] { return backend_->LinearAndRoute(both); }),
                   weight->n() * weight->k() * DTypeBytes(c.stored.dtype));
      }
    }
  }
}

TEST_F(BytesTest, FinishExpertsReadsOnlyTheExpertsThatHaveRows) {
  for (const StoredAs& stored : kStoredAs) {
    const Spread spread = {{0, 1, 0, 2, 0, 0, 1}};
    const BytesCase c = {stored, spread.num_rows(), {192, 512}};
    SCOPED_TRACE(NameOf(c));
    const auto weight = PackGroups(stored, spread.num_groups(), 1, c.size.n, c.size.k);
    const DeviceTensor act = Normal(DType::kBF16, {c.rows, c.size.k});
    const DeviceTensor rows = Normal(DType::kBF16, {c.rows, c.size.n});
    const DeviceTensor cu_rows = Ints(spread.CuRows());
    const DeviceTensor token_row = Ints({0, 1, 2, 3});
    const DeviceTensor weights = Normal(DType::kF32, {2, 2});
    const DeviceTensor x = Normal(DType::kF32, {2, c.size.n});
    const DeviceTensor sum = Normal(DType::kF32, {2, c.size.n});
    const DeviceTensor norm = Normal(DType::kF32, {c.size.n});
    const DeviceTensor out = Normal(DType::kBF16, {2, c.size.n});
    const TensorView token_rows(token_row.view.data, DType::kI32, {2, 2});
    const int64_t read = BytesRead(DataOf(*weight), [&] {
      return backend_->FinishExperts(
          {act.view, cu_rows.view, {}, weight.get(), rows.view},
          {.combine = {rows.view, {{}, {}, token_rows}, weights.view, {}, sum.view},
           .norm = {x.view, sum.view, norm.view, 1e-6f, out.view}});
    });
    EXPECT_EQ(read, spread.num_active() * c.bytes());
  }
}

// Each batch with a cache of bf16 and with one of FP8 entries.
std::vector<std::pair<std::vector<int32_t>, DType>> WithEachCache(
    std::span<const std::vector<int32_t>> batches) {
  std::vector<std::pair<std::vector<int32_t>, DType>> out;
  for (DType type : {DType::kBF16, DType::kU8}) {
    for (const std::vector<int32_t>& contexts : batches) out.emplace_back(contexts, type);
  }
  return out;
}

TEST_F(BytesTest, MlaDecodeWithSixteenHeadsReadsEachLatentOnce) {
  constexpr int64_t kHeads = 16;
  constexpr int64_t kLatent = 512;
  constexpr int64_t kWidth = kLatent + 64;
  constexpr int64_t kBlockTokens = 64;
  const std::vector<int32_t> batches[] = {{1}, {64}, {65}, {130, 1, 700}, {2500}, {40, 0, 300, 7}};
  for (const auto& [contexts, type] : WithEachCache(batches)) {
    SCOPED_TRACE(testing::PrintToString(contexts) + " " + std::string(DTypeName(type)));
    const int64_t entry = type == DType::kU8 ? Fp8Entry{kLatent, 64}.bytes() : kWidth;
    const auto num_seqs = static_cast<int64_t>(contexts.size());
    int64_t num_keys = 0;
    int32_t num_tokens = 0;
    int32_t most_blocks = 1;
    std::vector<int32_t> cu_seqlens = {0};
    for (int32_t context : contexts) {
      num_keys += context;
      num_tokens += context > 0;  // a padded sequence has no query
      cu_seqlens.push_back(num_tokens);
      most_blocks = std::max<int32_t>(most_blocks, (context + kBlockTokens - 1) / kBlockTokens);
    }
    TestTensor tables(DType::kI32, {num_seqs, most_blocks});
    for (int64_t i = 0; i < tables.size(); ++i) tables.at<int32_t>(i) = static_cast<int32_t>(i);
    const DeviceTensor q = Normal(DType::kBF16, {num_tokens, kHeads, kWidth});
    const DeviceTensor cache = Normal(type, {tables.size(), kBlockTokens, entry});
    const DeviceTensor block_tables = Upload(tables);
    const DeviceTensor cu = Ints(cu_seqlens);
    const DeviceTensor lens = Ints(contexts);
    const DeviceTensor out = Normal(DType::kBF16, {num_tokens, kHeads, kLatent});
    const int64_t read = BytesRead(cache.view.data, [&] {
      return backend_->MlaAttention({.q = q.view,
                                     .cache = cache.view,
                                     .block_tables = block_tables.view,
                                     .cu_seqlens_q = cu.view,
                                     .context_lens = lens.view,
                                     .scale = 0.1f,
                                     .out = out.view});
    });
    ExpectOnce(read, num_keys * entry * DTypeBytes(type));
  }
}

}  // namespace
}  // namespace jevons
