// cuBLASLt as far as dense products of bf16 go: d = the transposed of a, times b, plus a bias. k is cut
// into one to three parts, as the number of columns says: a column's bits depend on how many there
// are, as they do with the real one. Guarded by State::mutex.
#pragma once

#include <cublasLt.h>

#include <algorithm>
#include <cstdint>

namespace jevons::emu {

struct Desc {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  int32_t transposes_a = CUBLAS_OP_N;
  int32_t transposes_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const float* bias = nullptr;
  int32_t bias_type = -1;  // that of d
};

struct Layout {
  cudaDataType_t type = CUDA_R_32F;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;

  int64_t element() const { return type == CUDA_R_32F ? 4 : 2; }
  int64_t bytes() const { return ((columns - 1) * stride + rows) * element(); }
  bool operator==(const Layout&) const = default;
};

struct Problem {
  Layout a, b, c, d;
  bool has_bias = false;

  int64_t num_parts(int64_t k) const { return std::min(k, 1 + d.columns % 3); }
};

// What cublasLtMatmulAlgo_t holds.
struct Algorithm {
  uint64_t problem = 0;
  uint64_t workspace = 0;
  uint32_t num_parts = 1;
  uint32_t rounds_parts = 0;  // to the type of d
  uint32_t alignment[4] = {};
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

// Reports shapes that do not fit together, the caller's fault; what else is not offered is
// CUBLAS_STATUS_NOT_SUPPORTED.
cublasStatus_t CheckProblem(const Desc& desc, const Problem& problem);
// Of all that an algorithm is chosen for.
uint64_t HashOf(const Problem& problem);

// One product with its addresses.
struct Product {
  Problem problem;
  Algorithm algorithm;
  int device = 0;
  const char* a = nullptr;
  const char* b = nullptr;
  char* d = nullptr;
  const float* bias = nullptr;
  float* workspace = nullptr;

  // Reports an algorithm for another product, memory that is less aligned than it was said to be, and
  // a workspace that is too small.
  cublasStatus_t CheckAlgorithm(size_t workspace_bytes) const;
  // Whether each matrix lies within one allocation; reports the first that does not.
  bool AllLieIn() const;
  void Run() const;

 private:
  bool LiesIn(const void* data, int64_t bytes, const char* what) const;
  float Part(int64_t row, int64_t column, int64_t begin, int64_t end) const;
  void Store(int64_t row, int64_t column, float value) const;
};

}  // namespace jevons::emu
