// Dense products by cuBLASLt: what goes there, what comes back, and what is given up. The library is
// the emulator's.
#include "cuda/cublaslt.h"

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cuda/kernel_params.h"
#include "gmock/gmock.h"
#include "tests/cuda/backend_fixture.h"
#include "tests/cuda_emu/cublaslt_plan.h"

namespace jevons {
namespace {

using absl::StatusCode;
using cuda::ChooseUnpackedRows;
using cuda::GemmParams;

GemmParams Dense(int32_t num_rows, int32_t n, int32_t k) {
  GemmParams p;
  p.layout = {.n = n, .k = k};
  p.num_rows = num_rows;
  return p;
}

TEST(ChooseUnpackedRowsTest, ManyRowsOfADensePlainProductWithABf16Weight) {
  const auto choose = [](const GemmParams& p, int32_t least = 8) {
    return ChooseUnpackedRows(p, least, 1 << 20);
  };
  GemmParams p = Dense(8, 100, 70);
  EXPECT_EQ(choose(p), 128);
  EXPECT_EQ(choose(p, 0), 0);
  EXPECT_EQ(choose(p, 1), 128);
  EXPECT_EQ(choose(p, 9), 0);
  const float bias = 0;
  p.bias = &bias;
  EXPECT_EQ(choose(p), 128);
  p.out_type = cuda::Element::kBF16;
  EXPECT_EQ(choose(p), 0);
  p.bias = nullptr;
  EXPECT_EQ(choose(p), 128);
  p.layout.format = cuda::WeightFormat::kE4m3;
  EXPECT_EQ(choose(p), 0);
  p = Dense(8, 100, 70);
  p.layout.order = cuda::RowOrder::kPaired;
  p.epilogue = cuda::GemmEpilogue::kSiluMul;
  EXPECT_EQ(choose(p), 0);
  const int32_t index = 0;
  p = Dense(8, 100, 70);
  p.row_idx = &index;
  EXPECT_EQ(choose(p), 0);
  p.row_idx = nullptr;
  p.cu_rows = &index;
  EXPECT_EQ(choose(p), 0);
  p.cu_rows = nullptr;
  p.num_groups = 2;
  EXPECT_EQ(choose(p), 0);
}

TEST(ChooseUnpackedRowsTest, PiecesFitTheScratchAndAreWholeTiles) {
  for (const int32_t n : {1, 2048, 7168, 102400, 129280}) {
    for (const int32_t k : {1, 1536, 2048, 16384, 18432}) {
      const GemmParams p = Dense(4096, n, k);
      const int32_t rows = ChooseUnpackedRows(p, 256, cuda::kUnpackedBytes);
      ASSERT_GT(rows, 0);
      EXPECT_LE(int64_t{2} * rows * PaddedColumns(p.layout), cuda::kUnpackedBytes);
      EXPECT_EQ(rows % (rows < PaddedRows(p.layout) ? 256 : 64), 0);
    }
  }
  // A row that is too long for even one tile of rows.
  EXPECT_EQ(ChooseUnpackedRows(Dense(4096, 512, 1 << 20), 256, cuda::kUnpackedBytes), 0);
}

class CublasLtProductTest : public CudaBackendTest {
 protected:
  CublasLtProductTest() { emu::ResetCublasLt(); }
  ~CublasLtProductTest() override {
    with_ = nullptr;
    EXPECT_EQ(emu::OutstandingCublasLt(), 0);
    emu::ResetCublasLt();
  }

  // A second backend beside the plain one, on the same device.
  Backend& With(int32_t rows) {
    with_ = Create({.cublaslt_rows = rows});
    return *with_;
  }
  std::vector<uint8_t> Linear(Backend& backend, const Weight& weight, const TensorView& x,
                              const TensorView& bias = {}, DType type = DType::kF32) {
    const DeviceTensor out = Normal(type, {x.dim(0), weight.n()});
    EXPECT_TRUE(backend_->Wait().ok());
    const absl::Status status = backend.Linear({x, &weight, bias, out.view});
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(backend.Wait().ok());
    return ReadBack(out.view);
  }
  static std::vector<uint8_t> FirstRows(const std::vector<uint8_t>& all, size_t bytes) {
    return {all.begin(), all.begin() + static_cast<ptrdiff_t>(bytes)};
  }

  std::unique_ptr<Backend> with_;
};

TEST_F(CublasLtProductTest, PiecesOfAWeightGiveTheWhole) {
  constexpr int32_t kN = 600, kK = 72, kTokens = 5;
  const auto weight = Pack(*backend_, {{kN}}, kK);
  const DeviceTensor x = Normal(DType::kBF16, {kTokens, kK});
  const DeviceTensor bias = Normal(DType::kF32, {kN});
  const DeviceTensor whole = Normal(DType::kF32, {kTokens, kN});
  const DeviceTensor cut = Normal(DType::kF32, {kTokens, kN});
  auto* const stream = static_cast<cudaStream_t>(backend_->queue());
  // Scratch for all rows, and for 256 of them.
  for (const auto& [bytes, out] : {std::pair{1 << 20, &whole}, {256 * 128 * 2, &cut}}) {
    auto library = cuda::CreateCublasLt(bytes);
    ASSERT_TRUE(library.ok()) << library.status();
    GemmParams p =
        cuda::Product(*static_cast<const cuda::CudaWeight*>(weight.get()), x.view, out->view);
    p.bias = bias.view.ptr<float>();
    const auto queued = (*library)->Multiply(p, ChooseUnpackedRows(p, 1, bytes), stream);
    ASSERT_TRUE(queued.ok()) << queued.status();
    EXPECT_TRUE(*queued);
    EXPECT_TRUE(backend_->Wait().ok());
  }
  EXPECT_EQ(emu::NumCublasLtProducts(), 1 + 3);
  EXPECT_EQ(ReadBack(whole.view), ReadBack(cut.view));
  EXPECT_NE(ReadBack(whole.view), ReadBack(Normal(DType::kF32, {kTokens, kN}).view));
}

TEST_F(CublasLtProductTest, BitsFollowTheNumberOfRowsWithTheOptionAndNotWithoutIt) {
  constexpr int64_t kN = 96, kK = 300;
  const auto weight = Pack(*backend_, {{kN}}, kK);
  const DeviceTensor x = Normal(DType::kBF16, {6, kK});
  const std::vector<uint8_t> alone = Linear(*backend_, *weight, x.view.Slice(0, 4));
  EXPECT_EQ(FirstRows(Linear(*backend_, *weight, x.view), alone.size()), alone);
  EXPECT_EQ(emu::NumCublasLtCalls(), 0);
  Backend& with = With(5);
  const std::vector<uint8_t> five = Linear(with, *weight, x.view.Slice(0, 5));
  EXPECT_NE(FirstRows(five, alone.size()), alone);
  EXPECT_NE(FirstRows(Linear(with, *weight, x.view), five.size()), five);
  EXPECT_EQ(Linear(with, *weight, x.view.Slice(0, 5)), five);
  EXPECT_EQ(Linear(with, *weight, x.view.Slice(0, 4)), alone);
  EXPECT_EQ(emu::NumCublasLtProducts(), 3);
}

TEST_F(CublasLtProductTest, AProductWithANormBehindItIsTakenFromTheSameNumberOfRowsOn) {
  constexpr int64_t kN = 96, kK = 300;
  const auto weight = Pack(*backend_, {{kN}}, kK);
  const DeviceTensor all = Normal(DType::kBF16, {6, kK});
  const DeviceTensor norm = Normal(DType::kF32, {kN});
  Backend& with = With(5);
  for (const int64_t rows : {4, 6}) {
    const TensorView x = all.view.Slice(0, rows);
    const DeviceTensor given = Normal(DType::kBF16, {rows, kN});
    const DeviceTensor out = Normal(DType::kBF16, {rows, kN});
    EXPECT_TRUE(backend_->Wait().ok());
    const absl::Status status =
        with.LinearAndNorm({.linear = {x, weight.get(), {}, given.view},
                            .norm = {given.view, {}, norm.view, 1e-6f, out.view}});
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(with.Wait().ok());
    EXPECT_EQ(emu::NumCublasLtProducts(), rows < 5 ? 0 : 1);
    EXPECT_EQ(ReadBack(given.view), Linear(with, *weight, x, {}, DType::kBF16));
  }
}

TEST_F(CublasLtProductTest, MatricesMayBeginAtAnyElement) {
  constexpr int64_t kN = 40, kK = 70, kTokens = 4;
  const auto weight = Pack(*backend_, {{kN}}, kK);
  const DeviceTensor x = Normal(DType::kBF16, {kTokens, kK + 1});
  const DeviceTensor out = Normal(DType::kBF16, {kTokens, kN + 1});
  Backend& with = With(kTokens);
  // The columns behind the first, and the same in a place of their own.
  const auto behind = [](const TensorView& all) {
    TensorView view = all;
    view.data = view.ptr<char>() + 2;
    view.shape[1] -= 1;
    return view;
  };
  EXPECT_TRUE(backend_->Wait().ok());
  const absl::Status status = with.Linear({behind(x.view), weight.get(), {}, behind(out.view)});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(with.Wait().ok());
  TestTensor copy(DType::kBF16, {kTokens, kK});
  const std::vector<uint8_t> elements = ReadBack(x.view);
  for (int64_t row = 0; row < kTokens; ++row) {
    std::memcpy(&copy.at<uint16_t>(row * kK), &elements[(row * (kK + 1) + 1) * 2], kK * 2);
  }
  const std::vector<uint8_t> want = Linear(with, *weight, Upload(copy).view, {}, DType::kBF16);
  const std::vector<uint8_t> got = ReadBack(out.view);
  for (int64_t row = 0; row < kTokens; ++row) {
    EXPECT_EQ(std::memcmp(&got[(row * (kN + 1) + 1) * 2], &want[row * kN * 2], kN * 2), 0) << row;
  }
  EXPECT_EQ(emu::NumCublasLtProducts(), 2);
}

TEST_F(CublasLtProductTest, WhatIsNotOfferedIsOurs) {
  const auto weight = Pack(*backend_, {{48}}, 200);
  const DeviceTensor x = Normal(DType::kBF16, {4, 200});
  const DeviceTensor bias = Normal(DType::kF32, {48});
  Backend& with = With(1);
  emu::RefuseCublasLt(4);
  EXPECT_EQ(Linear(with, *weight, x.view), Linear(*backend_, *weight, x.view));
  emu::RefuseCublasLt(0);
  EXPECT_EQ(Linear(with, *weight, x.view, bias.view, DType::kBF16),
            Linear(*backend_, *weight, x.view, bias.view, DType::kBF16));
  EXPECT_EQ(emu::NumCublasLtProducts(), 0);
}

TEST_F(CublasLtProductTest, NanAndInfinityStayInTheirRow) {
  constexpr int64_t kN = 40, kK = 70;
  const auto weight = Pack(*backend_, {{kN}}, kK);
  TestTensor host = TestTensor(DType::kBF16, {5, kK}).FillNormal(random_);
  const std::vector<uint8_t> clean = Linear(With(1), *weight, Upload(host).view);
  host.at<uint16_t>(2 * kK + 69) = FloatToBf16(std::numeric_limits<float>::infinity());
  host.at<uint16_t>(2 * kK) = FloatToBf16(std::numeric_limits<float>::quiet_NaN());
  const std::vector<uint8_t> got = Linear(*with_, *weight, Upload(host).view);
  constexpr size_t kRow = kN * 4;
  for (size_t row = 0; row < 5; ++row) {
    const bool same = std::equal(&got[row * kRow], &got[row * kRow] + kRow, &clean[row * kRow]);
    EXPECT_EQ(same, row != 2) << row;
  }
}

// A step of ours, the library's and ours.
class CublasLtStepTest : public CublasLtProductTest {
 protected:
  static constexpr int64_t kTokens = 4, kHidden = 64;

  CublasLtStepTest() {
    Backend& with = With(kTokens);
    weight_ = Pack(with, {{kHidden}}, kHidden);
    x_ = Normal(DType::kF32, {kTokens, kHidden});
    norm_ = Normal(DType::kF32, {kHidden});
    normed_ = Normal(DType::kBF16, {kTokens, kHidden});
    product_ = Normal(DType::kBF16, {kTokens, kHidden});
    out_ = Normal(DType::kBF16, {kTokens, kHidden});
    EXPECT_TRUE(backend_->Wait().ok());
  }
  absl::Status Run() {
    return with_->RunStep(1, [this]() -> absl::Status {
      RETURN_IF_ERROR(with_->RmsNorm({x_.view, {}, norm_.view, 1e-6f, normed_.view}));
      RETURN_IF_ERROR(with_->Linear({normed_.view, weight_.get(), {}, product_.view}));
      return with_->RmsNorm({product_.view, {}, norm_.view, 1e-6f, out_.view});
    });
  }
  std::vector<uint8_t> Result() {
    const TestTensor nothing(DType::kBF16, {kTokens, kHidden});
    for (const DeviceTensor* t : {&normed_, &product_, &out_}) {
      EXPECT_TRUE(with_->Write(t->view, nothing.view()).ok());
    }
    const absl::Status status = Run();
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(with_->Wait().ok());
    return ReadBack(out_.view);
  }

  DeviceTensor x_, norm_, normed_, product_, out_;
  std::unique_ptr<Weight> weight_;
};

TEST_F(CublasLtStepTest, AStepIsRecordedAndReplayedWithNoCallOfTheLibrary) {
  const std::vector<uint8_t> eager = Result();
  const int64_t allocations = emu::NumCalls(emu::CallKind::kAllocation);
  EXPECT_EQ(Result(), eager);
  const int64_t calls = emu::NumCublasLtCalls();
  EXPECT_EQ(emu::NumCublasLtProducts(), 2);
  EXPECT_EQ(emu::OutstandingObjects().graph_execs, 1);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Result(), eager);
  EXPECT_EQ(emu::NumCublasLtCalls(), calls);
  EXPECT_EQ(emu::NumCalls(emu::CallKind::kAllocation), allocations);
}

// Neither what it unpacks for nor what reads its result.
TEST_F(CublasLtStepTest, NoKernelBesideAProductOfTheLibraryBeginsEarly) {
  for (int i = 0; i < 2; ++i) Result();
  emu::ResetCalls();
  Result();
  EXPECT_EQ(emu::NumCalls(emu::CallKind::kExecution), 3);
  EXPECT_EQ(emu::NumCalls(emu::CallKind::kEarly), 0);
}

TEST_F(CublasLtStepTest, AFailureAtAnyCallIsAStatusAndTheNextStepIsWhole) {
  const std::vector<uint8_t> want = Result();
  Result();
  const int64_t calls = emu::NumCublasLtCalls();
  Result();
  ASSERT_EQ(emu::NumCublasLtCalls(), calls);
  const int64_t outstanding = emu::OutstandingCublasLt();
  with_->ForgetSteps();
  Result();
  const int64_t of_a_step = emu::NumCublasLtCalls() - calls;
  ASSERT_GT(of_a_step, 0);
  // Of a step that runs as it is, and of one that is recorded.
  for (const bool recorded : {false, true}) {
    for (int64_t n = 1; n <= of_a_step; ++n) {
      with_->ForgetSteps();
      if (recorded) Result();
      emu::FailNthCublasLtCall(n, CUBLAS_STATUS_INTERNAL_ERROR);
      ExpectError(Run(), StatusCode::kInternal, {"cuBLASLt", "CUBLAS_STATUS_INTERNAL_ERROR"});
      EXPECT_EQ(emu::OutstandingCublasLt(), outstanding);
      EXPECT_EQ(emu::OutstandingObjects().graph_execs, 0);
      EXPECT_EQ(Result(), want);
      EXPECT_EQ(Result(), want);
    }
  }
}

TEST_F(CublasLtProductTest, ABackendThatCannotHaveItLeavesNothing) {
  const int64_t before = emu::OutstandingObjects().total();
  emu::FailNthCublasLtCall(1, CUBLAS_STATUS_NOT_INITIALIZED);
  ExpectError(CreateCudaBackend({.cublaslt_rows = 1}), StatusCode::kInternal,
              {"CUBLAS_STATUS_NOT_INITIALIZED"});
  for (const int64_t n : {1, 2}) {
    emu::ResetCalls();
    emu::FailNth(emu::CallKind::kAllocation, n, cudaErrorMemoryAllocation);
    ExpectError(CreateCudaBackend({.cublaslt_rows = 1}), StatusCode::kResourceExhausted,
                {"no device memory"});
  }
  emu::ResetCalls();
  EXPECT_EQ(emu::OutstandingObjects().total(), before);
  EXPECT_EQ(emu::OutstandingCublasLt(), 0);
  EXPECT_THAT(With(7).Description(), testing::HasSubstr("cuBLASLt from 7 rows"));
}

}  // namespace
}  // namespace jevons
