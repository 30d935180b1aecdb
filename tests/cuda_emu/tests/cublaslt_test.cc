// The emulated cuBLASLt: what it gives, when, and each misuse once.
#include <cublasLt.h>

#include <cmath>
#include <functional>
#include <vector>

#include "cuda/device/numeric.h"
#include "tests/cuda_emu/cublaslt_plan.h"
#include "tests/cuda_emu/tests/emu_test.h"

#define LT_OK(...) ASSERT_EQ(CUBLAS_STATUS_SUCCESS, __VA_ARGS__)

namespace jevons::emu {
namespace {

// d [n, tokens] = the transposed of w [k, n], times x [k, tokens]; the names are those of columns.
class CublasLtTest : public EmuTest {
 protected:
  static constexpr int64_t kN = 5, kK = 300, kStride = 304, kOutStride = 8;
  static constexpr int64_t kMostTokens = 4;
  static constexpr size_t kWorkspaceBytes = 4096;

  // So many, of magnitudes so far apart, that sums are rounded.
  static device::Bf16 Value(int64_t i) {
    const double angle = static_cast<double>(i) * static_cast<double>(i) + 1;
    return device::ToBf16(static_cast<float>(std::sin(angle) / static_cast<double>(1 + i % 7)));
  }

  void SetUp() override {
    ResetCublasLt();
    CUDA_OK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    for (auto& [data, bytes] : {std::pair{&w_, kN * kStride * 2},
                                {&x_, kMostTokens * kStride * 2},
                                {&out_, kMostTokens * kOutStride * 4},
                                {&workspace_, int64_t{kWorkspaceBytes}}}) {
      CUDA_OK(cudaMalloc(data, static_cast<size_t>(bytes)));
    }
    for (char* data : {w_, x_}) {
      std::vector<device::Bf16> values(kMostTokens * kStride);
      for (size_t i = 0; i < values.size(); ++i) {
        values[i] = Value(static_cast<int64_t>(i));
      }
      CUDA_OK(cudaMemcpy(data, values.data(), values.size() * 2, cudaMemcpyHostToDevice));
    }
    CUDA_OK(cudaMemcpy(w_ + kMostTokens * kStride * 2, x_, kK * 2, cudaMemcpyDeviceToDevice));
    LT_OK(cublasLtCreate(&handle_));
    LT_OK(cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const int32_t transposed = CUBLAS_OP_T;
    LT_OK(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, 4));
    LT_OK(cublasLtMatrixLayoutCreate(&w_layout_, CUDA_R_16BF, kK, kN, kStride));
    LT_OK(cublasLtMatmulPreferenceCreate(&preference_));
    Prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
    Prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    SetTokens(2, CUDA_R_32F);
  }
  void TearDown() override {
    SetTokens(0, CUDA_R_32F);
    EXPECT_EQ(cublasLtMatmulPreferenceDestroy(preference_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatrixLayoutDestroy(w_layout_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulDescDestroy(desc_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtDestroy(handle_), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(OutstandingCublasLt(), 0);
    for (char* data : {w_, x_, out_, workspace_}) EXPECT_CUDA(cudaSuccess, cudaFree(data));
    EXPECT_CUDA(cudaSuccess, cudaStreamDestroy(stream_));
    ResetCublasLt();
  }

  template <typename T>
  void Prefer(cublasLtMatmulPreferenceAttributes_t name, T value) {
    LT_OK(cublasLtMatmulPreferenceSetAttribute(preference_, name, &value, sizeof(value)));
  }
  // The layouts of x and d; none for 0.
  void SetTokens(uint64_t tokens, cudaDataType_t type, int64_t x_stride = kStride) {
    for (cublasLtMatrixLayout_t* layout : {&x_layout_, &out_layout_}) {
      if (*layout == nullptr) continue;
      LT_OK(cublasLtMatrixLayoutDestroy(*layout));
      *layout = nullptr;
    }
    if (tokens == 0) return;
    LT_OK(cublasLtMatrixLayoutCreate(&x_layout_, CUDA_R_16BF, kK, tokens, x_stride));
    LT_OK(cublasLtMatrixLayoutCreate(&out_layout_, type, kN, tokens, kOutStride));
  }
  cublasStatus_t Choose() {
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_, desc_, w_layout_, x_layout_, out_layout_,
                                       out_layout_, preference_, 1, &chosen_, &found);
    EXPECT_EQ(found, status == CUBLAS_STATUS_SUCCESS ? 1 : 0);
    return status;
  }
  cublasStatus_t Multiply(int64_t x_offset = 0, size_t workspace = kWorkspaceBytes) {
    const float one = 1;
    const float zero = 0;
    return cublasLtMatmul(handle_, desc_, &one, w_, w_layout_, x_ + x_offset, x_layout_, &zero,
                          out_, out_layout_, out_, out_layout_, &chosen_.algo, workspace_,
                          workspace, stream_);
  }
  // Column `token` of what lies in d as f32.
  std::vector<float> Column(int64_t token) {
    std::vector<float> out(kN);
    EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(out.data(), out_ + token * kOutStride * 4, kN * 4,
                                             cudaMemcpyDeviceToHost, stream_));
    return out;
  }

  cudaStream_t stream_ = nullptr;
  char *w_ = nullptr, *x_ = nullptr, *out_ = nullptr, *workspace_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t w_layout_ = nullptr, x_layout_ = nullptr, out_layout_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  cublasLtMatmulHeuristicResult_t chosen_ = {};
};

TEST_F(CublasLtTest, AColumnIsTheProductAndItsBitsFollowTheNumberOfColumns) {
  std::vector<std::vector<float>> first;
  for (const uint64_t tokens : {1, 2, 3, 4}) {
    SetTokens(tokens, CUDA_R_32F);
    LT_OK(Choose());
    LT_OK(Multiply());
    first.push_back(Column(0));
    for (int64_t i = 0; i < kN; ++i) {
      double want = 0;
      double sum = 0;
      for (int64_t j = 0; j < kK; ++j) {
        const int64_t at = i < kMostTokens ? i * kStride + j : j;  // as SetUp fills them
        const double product = double{device::ToFloat(Value(at))} * device::ToFloat(Value(j));
        want += product;
        sum += std::abs(product);
      }
      EXPECT_NEAR(first.back()[i], want, 1e-6 * sum);
    }
  }
  EXPECT_NE(first[0], first[1]);
  EXPECT_EQ(first[0], first[3]);
  EXPECT_EQ(NumCublasLtProducts(), 4);
}

TEST_F(CublasLtTest, AProductIsRecordedAndReplayed) {
  LT_OK(Choose());
  LT_OK(Multiply());
  const std::vector<float> want = Column(1);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CUDA_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  LT_OK(Choose());
  LT_OK(Multiply());
  CUDA_OK(cudaStreamEndCapture(stream_, &graph));
  CUDA_OK(cudaGraphInstantiate(&exec, graph));
  CUDA_OK(cudaMemset(out_, 0, kMostTokens * kOutStride * 4));
  EXPECT_NE(Column(1), want);
  CUDA_OK(cudaGraphLaunch(exec, stream_));
  EXPECT_EQ(Column(1), want);
  CUDA_OK(cudaGraphExecDestroy(exec));
  CUDA_OK(cudaGraphDestroy(graph));
}

TEST_F(CublasLtTest, WhatIsNotOfferedIsSaidAtTheChoice) {
  RefuseCublasLt(2);
  EXPECT_EQ(Choose(), CUBLAS_STATUS_NOT_SUPPORTED);
  RefuseCublasLt(0);
  LT_OK(Choose());
  SetTokens(2, CUDA_R_16F);
  EXPECT_EQ(Choose(), CUBLAS_STATUS_NOT_SUPPORTED);
  // bf16 takes no bias of f32.
  const uint32_t bias = CUBLASLT_EPILOGUE_BIAS;
  LT_OK(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, 4));
  SetTokens(2, CUDA_R_16BF);
  EXPECT_EQ(Choose(), CUBLAS_STATUS_NOT_SUPPORTED);
  SetTokens(2, CUDA_R_32F);
  LT_OK(Choose());
}

TEST_F(CublasLtTest, APlannedFailureComesOnce) {
  FailNthCublasLtCall(2, CUBLAS_STATUS_INTERNAL_ERROR);
  LT_OK(Choose());
  EXPECT_EQ(Multiply(), CUBLAS_STATUS_INTERNAL_ERROR);
  LT_OK(Multiply());
}

TEST_F(CublasLtTest, EachMisuseIsReported) {
  const auto reports = [](const char* text, const std::function<cublasStatus_t()>& call) {
    EXPECT_EQ(call(), CUBLAS_STATUS_INVALID_VALUE);
    EXPECT_NE(LastMisuse().find(text), std::string::npos) << text;
  };
  SetTokens(2, CUDA_R_32F, kK - 1);
  reports("columns overlap", [&] { return Choose(); });
  SetTokens(2, CUDA_R_32F);
  LT_OK(Choose());
  reports("less aligned", [&] { return Multiply(2); });
  reports("workspace that is too small", [&] { return Multiply(0, 4); });
  SetTokens(3, CUDA_R_32F);
  reports("chosen for another product", [&] { return Multiply(); });
  Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{2});
  SetTokens(kMostTokens, CUDA_R_32F);
  LT_OK(Choose());
  reports("b is not within one allocation", [&] { return Multiply(kStride * 2); });
  LT_OK(Multiply());
}

}  // namespace
}  // namespace jevons::emu
