// Matrix products of cuBLASLt: the ceiling for flops, and the peer of large products. The library
// is loaded when it is asked for, so a bench runs without it.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"

namespace jevons {

enum class BlasKind : int32_t {
  kBf16,
  kFp8Blocks,  // a weight's scale for 128 x 128 values, an activation's for 128
  kFp8Tensor,  // one scale a matrix
};

// out [n, m] bf16 = x [n, k] times the transpose of w [m, k]: w is the weight, x are rows of
// tokens.
class BlasProduct {
 public:
  virtual ~BlasProduct() = default;
  // Queues the product on the cudaStream_t. Scales: f32 in device memory, null for kBf16.
  virtual absl::Status Run(const void* w, const void* x, const float* w_scales,
                           const float* x_scales, void* out, void* stream) = 0;
};

// UNAVAILABLE where the library is not there, UNIMPLEMENTED where it does not offer the product.
absl::StatusOr<std::unique_ptr<BlasProduct>> MakeBlasProduct(BlasKind kind, int64_t m, int64_t n,
                                                             int64_t k);

}  // namespace jevons
