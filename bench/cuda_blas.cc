#include "bench/cuda_blas.h"

#include <cublasLt.h>

#include "absl/strings/str_cat.h"
#include "cuda/cublaslt_library.h"
#include "cuda/cuda_error.h"
#include "cuda/device_memory.h"

namespace jevons {
namespace {

constexpr size_t kWorkspaceBytes = 64 << 20;

absl::Status Check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(what, ": cuBLASLt says ", static_cast<int>(status)));
}

class LtProduct : public BlasProduct {
 public:
  explicit LtProduct(const cuda::CublasLtLibrary& lib) : lib_(lib) {}
  ~LtProduct() override {
    for (cublasLtMatrixLayout_t layout : {w_, x_, out_}) {
      if (layout != nullptr) lib_.layout_destroy(layout);
    }
    if (preference_ != nullptr) lib_.preference_destroy(preference_);
    if (desc_ != nullptr) lib_.desc_destroy(desc_);
    if (handle_ != nullptr) lib_.destroy(handle_);
  }
  LtProduct(const LtProduct&) = delete;
  LtProduct& operator=(const LtProduct&) = delete;

  absl::Status Prepare(BlasKind kind, int64_t m, int64_t n, int64_t k) {
    const cudaDataType_t type = kind == BlasKind::kBf16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
    RETURN_IF_ERROR(Check(lib_.create(&handle_), "handle"));
    RETURN_IF_ERROR(Check(lib_.desc_create(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "descriptor"));
    const cublasOperation_t transpose = CUBLAS_OP_T;
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_TRANSA, transpose));
    RETURN_IF_ERROR(SetScales(kind));
    RETURN_IF_ERROR(Check(lib_.layout_create(&w_, type, k, m, k), "weight"));
    RETURN_IF_ERROR(Check(lib_.layout_create(&x_, type, k, n, k), "rows"));
    RETURN_IF_ERROR(Check(lib_.layout_create(&out_, CUDA_R_16BF, m, n, m), "output"));
    RETURN_IF_ERROR(Check(lib_.preference_create(&preference_), "preference"));
    const size_t workspace = kWorkspaceBytes;
    RETURN_IF_ERROR(Check(lib_.preference_set(preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &workspace, sizeof(workspace)),
                          "workspace"));
    int found = 0;
    RETURN_IF_ERROR(Check(
        lib_.heuristic(handle_, desc_, w_, x_, out_, out_, preference_, 1, &algorithm_, &found),
        "choice of the algorithm"));
    if (found == 0) return absl::UnimplementedError("cuBLASLt offers no algorithm");
    ASSIGN_OR_RETURN(workspace_, cuda::DeviceBuffer::Allocate(kWorkspaceBytes));
    return absl::OkStatus();
  }

  absl::Status Run(const void* w, const void* x, const float* w_scales, const float* x_scales,
                   void* out, void* stream) override {
    if (w_scales != nullptr) {
      RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scales));
      RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scales));
    }
    const float one = 1;
    const float zero = 0;
    return Check(lib_.matmul(handle_, desc_, &one, w, w_, x, x_, &zero, out, out_, out, out_,
                             &algorithm_.algo, workspace_->data(), kWorkspaceBytes,
                             static_cast<cudaStream_t>(stream)),
                 "product");
  }

 private:
  template <typename T>
  absl::Status Set(cublasLtMatmulDescAttributes_t name, const T& value) {
    return Check(lib_.desc_set(desc_, name, &value, sizeof(value)), "attribute");
  }
  absl::Status SetScales(BlasKind kind) {
    if (kind != BlasKind::kFp8Blocks) return absl::OkStatus();
#if CUBLAS_VERSION >= 120900
    const int32_t of_weight = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    const int32_t of_rows = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    RETURN_IF_ERROR(Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, of_weight));
    return Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, of_rows);
#else
    return absl::UnimplementedError("scales of blocks came with CUDA 12.9");
#endif
  }

  const cuda::CublasLtLibrary lib_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr;
  cublasLtMatrixLayout_t x_ = nullptr;
  cublasLtMatrixLayout_t out_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  cublasLtMatmulHeuristicResult_t algorithm_ = {};
  std::unique_ptr<cuda::DeviceBuffer> workspace_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlasProduct>> MakeBlasProduct(BlasKind kind, int64_t m, int64_t n,
                                                             int64_t k) {
  ASSIGN_OR_RETURN(const cuda::CublasLtLibrary library, cuda::LoadCublasLt());
  auto product = std::make_unique<LtProduct>(library);
  RETURN_IF_ERROR(product->Prepare(kind, m, n, k));
  return product;
}

}  // namespace jevons
