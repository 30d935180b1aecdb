// Stands for bench/cuda_blas.cc where cuBLASLt's header is not there, as with the emulator.
#include "bench/cuda_blas.h"

namespace jevons {

absl::StatusOr<std::unique_ptr<BlasProduct>> MakeBlasProduct(BlasKind kind, int64_t m, int64_t n,
                                                             int64_t k) {
  return absl::UnavailableError("built without cuBLASLt's header");
}

}  // namespace jevons
