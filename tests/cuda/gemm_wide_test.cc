// The kernel for many rows against the other tiles of wgmma, bit by bit, and against fp64.
#include "cuda/gemm_wide.h"

#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "base/tensor_view.h"
#include "cuda/round_rows.h"
#include "ops/linear.h"
#include "tests/cuda/pack_host.h"
#include "tests/cuda_emu/tests/emu_test.h"

namespace jevons::cuda {
namespace {

// Three blocks walk over the tiles; no launch of ours asks for more.
constexpr DeviceFacts kFacts = {.sm = 90, .num_sms = 3};
constexpr int32_t kNarrowStrips = 8;

enum class Kind { kBf16, kE4m3, kFp8 };  // the last one with rows of FP8
constexpr Kind kKinds[] = {Kind::kBf16, Kind::kE4m3, Kind::kFp8};
const char* const kNames[] = {"bf16", "e4m3", "fp8"};

struct WideCase {
  int32_t n;
  int32_t k;
  std::vector<int32_t> rows;  // of each group
  bool gathers = false;       // rows of x by an index, some of them out of range
  bool paired = false;        // gate and up
  bool bias = false;
  bool heads = false;  // every group has the same rows, beside each other in x and in out
  bool one_weight = false;
  Element out_type = Element::kF32;
};

// Memory of the device, which the host may touch too. Starts as NaN, or -1.
template <typename T>
class Memory {
 public:
  explicit Memory(int64_t size) : size_(size) {
    EXPECT_EQ(cudaMalloc(&data_, static_cast<size_t>(size) * sizeof(T)), cudaSuccess);
    std::memset(static_cast<void*>(data_), 0xFF, static_cast<size_t>(size) * sizeof(T));
  }
  explicit Memory(const std::vector<T>& values) : Memory(static_cast<int64_t>(values.size())) {
    std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(data_); }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  std::vector<T> Copy() const { return std::vector<T>(data_, data_ + size_); }

 private:
  int64_t size_;
  T* data_ = nullptr;
};

PackedLayout LayoutOf(const WideCase& c, Kind kind) {
  return {.format = kind == Kind::kBf16 ? WeightFormat::kBf16 : WeightFormat::kE4m3,
          .order = c.paired ? RowOrder::kPaired : RowOrder::kPlain,
          .n = c.n,
          .k = c.k};
}

int64_t NumRows(const WideCase& c) {
  int64_t sum = 0;
  for (int32_t rows : c.rows) sum += rows;
  return sum;
}

// A product with its memory, and its values.
class WideProduct {
 public:
  WideProduct(const WideCase& c, Kind kind, Random& random)
      : case_(c),
        kind_(kind),
        num_groups_(static_cast<int32_t>(c.rows.size())),
        num_rows_(static_cast<int32_t>(c.heads ? c.rows[0] : NumRows(c))),
        num_x_rows_(c.gathers ? 40 : num_rows_),
        layout_(LayoutOf(c, kind)),
        weight_(num_groups_ * PackedBytes(layout_)),
        scales_(num_groups_ * ScaleBytes(layout_) / 4 + 1),
        x_stride_(int64_t{RoundUp(c.k, 8)} * (c.heads ? num_groups_ : 1) + 8),
        x_(num_x_rows_ * x_stride_),
        rounded_(num_x_rows_ * RoundedRowBytes(c.k, true)),
        cu_rows_(num_groups_ + 1),
        row_idx_(num_rows_),
        bias_(c.n),
        out_stride_((c.paired ? c.n / 2 : c.n) * (c.heads ? num_groups_ : 1) + 3),
        out_((num_rows_ + 1) * out_stride_) {
    MakeWeight(random);
    for (int64_t i = 0; i < num_x_rows_ * x_stride_; ++i) {
      if (i % x_stride_ < x_stride_ - 8) x_[i] = FloatToBf16(static_cast<float>(random.Normal()));
    }
    cu_rows_[0] = 0;
    for (int32_t g = 0; g < num_groups_; ++g) cu_rows_[g + 1] = cu_rows_[g] + c.rows[g];
    for (int32_t i = 0; i < num_rows_; ++i) {
      row_idx_[i] = i % 29 == 7 ? -1 : i % 31 == 11 ? num_x_rows_ : i * 7 % num_x_rows_;
    }
    for (int32_t i = 0; i < c.n; ++i) bias_[i] = static_cast<float>(random.Normal());
  }

  GemmParams Params() const {
    GemmParams p;
    p.weight = weight_.data();
    p.scales = scales_.data();
    p.layout = layout_;
    p.num_groups = num_groups_;
    p.one_weight = case_.one_weight;
    p.x = x_.data();
    p.x_row_stride = x_stride_;
    p.num_x_rows = num_x_rows_;
    if (kind_ == Kind::kFp8) {
      p.x = rounded_.data();
      p.x_row_stride = RoundedRowBytes(case_.k, true);
      p.atom = GemmAtom::kWgmmaFp8;
    }
    if (!case_.heads) p.cu_rows = cu_rows_.data();
    if (case_.heads) p.x_group_stride = RoundUp(case_.k, 8);
    if (case_.heads) p.out_group_stride = case_.n;
    if (case_.gathers) p.row_idx = row_idx_.data();
    p.num_rows = num_rows_;
    p.out = out_.data();
    p.out_type = case_.out_type;
    p.out_row_stride = out_stride_;
    if (case_.bias) p.bias = bias_.data();
    if (case_.paired) p.epilogue = GemmEpilogue::kSiluMul;
    return p;
  }

  // All bytes of out, with what lies between and behind its rows.
  std::vector<float> Run(int32_t tile_strips) {
    std::memset(static_cast<void*>(out_.data()), 0xFF,
                static_cast<size_t>((num_rows_ + 1) * out_stride_) * sizeof(float));
    RoundRows();
    const GemmParams params = Params();
    const GemmPlan plan = PlanGemm(params, kFacts, kWideTokens, tile_strips);
    EXPECT_EQ(LaunchGemmAs(params, plan, kFacts, nullptr), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return out_.Copy();
  }

  void ExpectNear(const std::vector<float>& out) const {
    const double tolerance = kind_ == Kind::kFp8 ? kLinearFp8Tolerance : kGemmTolerance;
    for (int32_t g = 0; g < num_groups_; ++g) {
      for (int32_t r = cu_rows_[g]; r < cu_rows_[g + 1]; ++r) {
        for (int32_t i = 0; i < case_.n; ++i) {
          double sum = 0;
          double size = 0;
          for (int32_t c = 0; c < case_.k; ++c) {
            const double term = W(g, i, c) * X(r, c);
            sum += term;
            size += std::abs(term);
          }
          const float got = out[r * out_stride_ + i];
          ASSERT_TRUE(std::abs(got - sum) <= tolerance * size) << "row " << r << " column " << i;
        }
      }
    }
  }

  int64_t TokenTiles() const {
    int64_t tiles = 0;
    for (int32_t rows : case_.rows) tiles += CeilDiv(rows, kWideTokens);
    return tiles;
  }
  const void* weight() const { return weight_.data(); }
  int64_t group_bytes() const { return PackedBytes(layout_); }

 private:
  void MakeWeight(Random& random) {
    const int64_t bytes = group_bytes();
    for (int32_t g = 0; g < num_groups_; ++g) {
      if (kind_ == Kind::kBf16) {
        const auto packed = PackOnHost<uint16_t>(
            layout_, [&](int, int) { return FloatToBf16(static_cast<float>(random.Normal())); });
        std::memcpy(weight_.data() + g * bytes, packed.data(), bytes);
      } else {
        const auto packed = PackOnHost<uint8_t>(layout_, [&](int, int) {
          const auto byte = static_cast<uint8_t>(random.Bits());
          return static_cast<uint8_t>((byte & 0x7F) == 0x7F ? byte ^ 1 : byte);
        });
        std::memcpy(weight_.data() + g * bytes, packed.data(), bytes);
      }
    }
    for (int64_t i = 0; i < num_groups_ * ScaleBytes(layout_) / 4; ++i) {
      scales_[i] = static_cast<float>(0.001 + random.Uniform());
    }
  }

  void RoundRows() {
    if (kind_ != Kind::kFp8) return;
    const RoundRowsParams rows = {.x = x_.data(),
                                  .x_stride = x_stride_,
                                  .as_fp8 = true,
                                  .out = rounded_.data(),
                                  .num_rows = num_x_rows_,
                                  .width = case_.k};
    EXPECT_EQ(LaunchRoundRows(rows, kFacts, nullptr), cudaSuccess);
  }

  double W(int32_t g, int32_t i, int32_t c) const {
    const int64_t at = PackedOffset(layout_, PackedRow(layout_, i), c);
    if (kind_ == Kind::kBf16) {
      uint16_t bits = 0;
      std::memcpy(&bits, weight_.data() + g * group_bytes() + 2 * at, 2);
      return Bf16ToFloat(bits);
    }
    const int64_t block = g * ScaleBytes(layout_) / 4 +
                          PackedRow(layout_, i) / kScaleRows * ScaleBlocks(layout_) +
                          c / kScaleColumns;
    return double{F8E4M3ToFloat(weight_[g * group_bytes() + at])} * scales_[block];
  }
  double X(int32_t r, int32_t c) const {
    if (kind_ != Kind::kFp8) return Bf16ToFloat(x_[r * x_stride_ + c]);
    const uint8_t* const row = rounded_.data() + r * RoundedRowBytes(case_.k, true);
    float scale = 0;
    std::memcpy(&scale, row + Fp8Entry{case_.k, 0}.scales() + c / kFp8Group * 4, 4);
    return double{F8E4M3ToFloat(row[Fp8Place(c)])} * scale;
  }

  const WideCase case_;
  const Kind kind_;
  const int32_t num_groups_, num_rows_, num_x_rows_;
  const PackedLayout layout_;
  const Memory<uint8_t> weight_;
  const Memory<float> scales_;
  const int64_t x_stride_;
  const Memory<uint16_t> x_;
  const Memory<uint8_t> rounded_;
  const Memory<int32_t> cu_rows_, row_idx_;
  const Memory<float> bias_;
  const int64_t out_stride_;
  const Memory<float> out_;
};

std::string NameOf(const WideCase& c, Kind kind) {
  return std::string(kNames[static_cast<int>(kind)]) + " n " + std::to_string(c.n) + " k " +
         std::to_string(c.k) + " rows " + std::to_string(NumRows(c));
}

class GemmWideTest : public emu::EmuTest {
 protected:
  void SetUp() override {
    if (emu::DeviceOptions().major != 9) GTEST_SKIP() << "wgmma is of sm_90 alone";
  }

  void ExpectBitsOfNarrow(const WideCase& c, bool and_fp64 = false) {
    for (Kind kind : kKinds) {
      if (c.heads && kind == Kind::kFp8) continue;  // not for heads
      ASSERT_FALSE(HasFailure());                   // after a misuse the device gives no memory
      SCOPED_TRACE(NameOf(c, kind));
      WideProduct product(c, kind, random_);
      const std::vector<float> want = product.Run(kNarrowStrips);
      const std::vector<float> got = product.Run(kWideStrips);
      ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0);
      if (and_fp64) product.ExpectNear(got);
    }
  }

  Random random_{20251128};
};

// One stage and many; strips of one, two and all three warpgroups; stages that a strip ends within.
const WideCase kCases[] = {
    {.n = 1, .k = 1, .rows = {1}},
    {.n = 65, .k = 129, .rows = {0, 17, 0}},
    {.n = 192, .k = 300, .rows = {129}},
    {.n = 200, .k = 600, .rows = {3, 0, 130}},
};

TEST_F(GemmWideTest, HasTheBitsOfTheOtherTilesAndAgreesWithFp64) {
  for (const WideCase& c : kCases) ExpectBitsOfNarrow(c, true);
  ExpectBitsOfNarrow({.n = 260, .k = 200, .rows = {5, 140}, .bias = true});
  ExpectBitsOfNarrow({.n = 70, .k = 448, .rows = {9}, .out_type = Element::kBF16});
}

TEST_F(GemmWideTest, GathersRowsAndLosesThoseWithoutASource) {
  ExpectBitsOfNarrow({.n = 200, .k = 200, .rows = {0, 150, 31}, .gathers = true});
  const WideCase c = {.n = 200, .k = 200, .rows = {0, 150, 31}, .gathers = true, .paired = true};
  ExpectBitsOfNarrow(c);
  ASSERT_FALSE(HasFailure());
  WideProduct product(c, Kind::kBf16, random_);
  const std::vector<float> out = product.Run(kWideStrips);
  const int64_t stride = product.Params().out_row_stride;
  for (int64_t r = 0; r < 181; ++r) {
    const bool lost = r % 29 == 7 || r % 31 == 11;
    EXPECT_EQ(std::isnan(out[r * stride]), lost) << "row " << r;
    EXPECT_EQ(std::isnan(out[r * stride + 99]), lost) << "row " << r;
  }
}

TEST_F(GemmWideTest, GroupsMayShareRowsOrAWeight) {
  ExpectBitsOfNarrow({.n = 128, .k = 72, .rows = {20, 20, 20}, .heads = true});
  ExpectBitsOfNarrow({.n = 64, .k = 260, .rows = {9, 9}, .heads = true, .one_weight = true});
}

TEST_F(GemmWideTest, AnySeedGivesTheSame) {
  const WideCase c = {.n = 260, .k = 520, .rows = {12, 0, 131}, .gathers = true};
  for (Kind kind : kKinds) {
    ASSERT_FALSE(HasFailure());
    WideProduct product(c, kind, random_);
    const std::vector<float> want = product.Run(kNarrowStrips);
    for (uint64_t seed : {3, 4}) {
      emu::SetSeed(seed);
      const std::vector<float> got = product.Run(kWideStrips);
      ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0) << seed;
    }
  }
}

TEST_F(GemmWideTest, ReadsAWeightOnceForEachTileOfTokens) {
  for (Kind kind : kKinds) {
    ASSERT_FALSE(HasFailure());
    WideProduct product({.n = 328, .k = 448, .rows = {140, 0, 1}}, kind, random_);
    EXPECT_EQ(product.TokenTiles(), 3);
    emu::ResetCounters();
    product.Run(kWideStrips);
    EXPECT_EQ(emu::GlobalBytesRead(product.weight()), 3 * product.group_bytes());
  }
}

// Two products of which the second reads what the first one writes and begins before.
TEST_F(GemmWideTest, BeginsBeforeTheKernelInFrontEndsAndReadsWhatItWrote) {
  DeviceFacts early = kFacts;
  early.early = true;
  for (bool indexed : {false, true}) {
    ASSERT_FALSE(HasFailure());
    WideProduct first({.n = 136, .k = 72, .rows = {130}, .out_type = Element::kBF16}, Kind::kBf16,
                      random_);
    WideProduct second({.n = 200, .k = 136, .rows = {130}}, Kind::kBf16, random_);
    const auto run = [&](const DeviceFacts& facts) {
      const Memory<uint16_t> between(130 * 136);
      GemmParams a = first.Params();
      a.out = between.data();
      a.out_row_stride = 136;
      GemmParams b = second.Params();
      b.x = between.data();
      b.x_row_stride = 136;
      if (!indexed) b.cu_rows = nullptr;
      const GemmPlan plan = PlanGemm(a, kFacts, kWideTokens, kWideStrips);
      EXPECT_EQ(LaunchGemmAs(a, plan, kFacts, nullptr), cudaSuccess);
      EXPECT_EQ(LaunchGemmAs(b, PlanGemm(b, kFacts, kWideTokens, kWideStrips), facts, nullptr),
                cudaSuccess);
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const auto* const out = static_cast<const float*>(b.out);
      return std::vector<float>(out, out + 129 * b.out_row_stride + 200);
    };
    const std::vector<float> want = run(kFacts);
    ASSERT_FALSE(HasFailure());
    const std::vector<float> got = run(early);
    ASSERT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0);
    for (int r = 0; r < 130; ++r) EXPECT_FALSE(std::isnan(got[r * 203])) << r;
  }
}

TEST_F(GemmWideTest, RowsThatAreNotAlignedAreRefused) {
  WideProduct product({.n = 64, .k = 64, .rows = {9}}, Kind::kBf16, random_);
  GemmParams params = product.Params();
  params.x_row_stride = 68;
  const GemmPlan plan = PlanGemm(params, kFacts, kWideTokens, kWideStrips);
  EXPECT_EQ(LaunchGemmAs(params, plan, kFacts, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace jevons::cuda
