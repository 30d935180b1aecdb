// Stands for cuda/cublaslt_library.cc where the library is that of the emulator.
#include "cuda/cublaslt_library.h"

namespace jevons::cuda {

absl::StatusOr<CublasLtLibrary> LoadCublasLt() {
  return CublasLtLibrary{.create = cublasLtCreate,
                         .destroy = cublasLtDestroy,
                         .desc_create = cublasLtMatmulDescCreate,
                         .desc_destroy = cublasLtMatmulDescDestroy,
                         .desc_set = cublasLtMatmulDescSetAttribute,
                         .layout_create = cublasLtMatrixLayoutCreate,
                         .layout_destroy = cublasLtMatrixLayoutDestroy,
                         .preference_create = cublasLtMatmulPreferenceCreate,
                         .preference_destroy = cublasLtMatmulPreferenceDestroy,
                         .preference_set = cublasLtMatmulPreferenceSetAttribute,
                         .heuristic = cublasLtMatmulAlgoGetHeuristic,
                         .matmul = cublasLtMatmul,
                         .status_name = cublasLtGetStatusName};
}

}  // namespace jevons::cuda
