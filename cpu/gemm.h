// The matrix products of the CPU backend: cutting the work into tasks and handing them to threads.
#pragma once

#include <vector>

#include "base/status.h"
#include "cpu/cpu_weight.h"
#include "cpu/gemm_kernels.h"
#include "cpu/huge_buffer.h"
#include "cpu/thread_pool.h"
#include "ops/linear.h"

namespace jevons::fast {

// Holds the memory that the products need between calls. Used by one thread at a time. Arguments
// have passed Validate. INVALID_ARGUMENT for a weight of another backend; RESOURCE_EXHAUSTED
// without memory for the packed rows.
class Gemm {
 public:
  absl::Status Linear(const LinearArgs& args, ThreadPool& pool);
  absl::Status HeadLinear(const HeadLinearArgs& args, ThreadPool& pool);
  absl::Status GroupedGemm(const GroupedGemmArgs& args, ThreadPool& pool);

 private:
  // Rows that meet one group of a weight.
  struct Part {
    int64_t group = 0;
    const float* x = nullptr;
    int64_t x_stride = 0;
    const int32_t* row_idx = nullptr;  // may be absent: row i is x[i]
    int64_t num_rows = 0;
    float* out = nullptr;
    int64_t out_stride = 0;
    const float* bias = nullptr;

    const float* row(int64_t i) const {
      return x + (row_idx != nullptr ? row_idx[i] : i) * x_stride;
    }
  };

  void AddPart(Part part);
  absl::Status Run(const CpuWeight& weight, ThreadPool& pool);
  void PackRows(int64_t begin, int64_t end, int64_t k, ThreadPool& pool);
  void Multiply(const CpuWeight& weight, int64_t begin, int64_t end, ThreadPool& pool);

  // Of the call.
  GemmKernels kernels_ = {};
  bool rounds_to_fp8_ = false;
  std::vector<Part> parts_;
  std::vector<int64_t> cu_tiles_;
  std::vector<int64_t> cu_rows_;
  HugeBuffer packed_;
};

}  // namespace jevons::fast
