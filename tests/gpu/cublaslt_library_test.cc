// The real cuBLASLt, as far as it goes without a device: it is loaded, and takes what
// cuda/cublaslt.cc sets.
#include "cuda/cublaslt_library.h"

#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace jevons::cuda {
namespace {

class CublasLtLibraryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto loaded = LoadCublasLt();
    if (!loaded.ok()) {
      ExpectError(loaded, absl::StatusCode::kUnavailable, {"cuBLASLt", "libcublasLt.so."});
      GTEST_SKIP() << loaded.status();
    }
    lib_ = *loaded;
  }

  CublasLtLibrary lib_;
};

TEST_F(CublasLtLibraryTest, NamesItsStates) {
  EXPECT_STREQ(lib_.status_name(CUBLAS_STATUS_NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED");
}

TEST_F(CublasLtLibraryTest, TakesTheAttributesOfAProduct) {
  cublasLtMatmulDesc_t desc = nullptr;
  ASSERT_EQ(lib_.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  const auto set = [&](cublasLtMatmulDescAttributes_t name, const auto& value) {
    EXPECT_EQ(lib_.desc_set(desc, name, &value, sizeof(value)), CUBLAS_STATUS_SUCCESS) << name;
    EXPECT_NE(lib_.desc_set(desc, name, &value, sizeof(value) - 1), CUBLAS_STATUS_SUCCESS) << name;
  };
  const float* const bias = nullptr;
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t{CUDA_R_32F});
  set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  EXPECT_EQ(lib_.desc_destroy(desc), CUBLAS_STATUS_SUCCESS);
}

TEST_F(CublasLtLibraryTest, TakesMatricesAndPreferences) {
  for (const cudaDataType_t type : {CUDA_R_16BF, CUDA_R_32F}) {
    cublasLtMatrixLayout_t layout = nullptr;
    ASSERT_EQ(lib_.layout_create(&layout, type, 70, 5, 73), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(lib_.layout_destroy(layout), CUBLAS_STATUS_SUCCESS);
  }
  cublasLtMatmulPreference_t preference = nullptr;
  ASSERT_EQ(lib_.preference_create(&preference), CUBLAS_STATUS_SUCCESS);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    EXPECT_EQ(lib_.preference_set(preference, name, &value, sizeof(value)), CUBLAS_STATUS_SUCCESS)
        << name;
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{1} << 25);
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  for (const auto name :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    for (const uint32_t bytes : {2u, 16u, 256u}) set(name, bytes);
  }
  EXPECT_EQ(lib_.preference_destroy(preference), CUBLAS_STATUS_SUCCESS);
}

}  // namespace
}  // namespace jevons::cuda
