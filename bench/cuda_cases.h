// What bench/cuda_bench.cc can measure, by name.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "base/random.h"
#include "base/status.h"
#include "bench/cuda_report.h"
#include "ops/backend.h"

namespace jevons {

struct CudaBenchOptions {
  bool tiny = false;   // shapes for an emulator: the logic runs, the numbers mean nothing
  bool quick = false;  // fewer sizes and fewer runs
  absl::Time deadline = absl::InfiniteFuture();
};

// What a case is given. Used by one thread at a time.
class CudaBench {
 public:
  CudaBench(const CudaBenchOptions& options, CudaReport& report)
      : options_(options), report_(report) {}

  const CudaBenchOptions& options() const { return options_; }
  CudaReport& report() { return report_; }
  bool TimeIsUp() const { return absl::Now() > options_.deadline; }
  // The one that the cases of single ops share. Its kernels begin in turn, so that a time is that of
  // one kernel.
  absl::StatusOr<Backend*> backend();

  // Times op(0) .. op(rotations - 1), which differ in the memory that they touch so that no cache
  // keeps it, and adds the row. Calls are recorded one after the other in a graph, so a time holds
  // the step from one kernel to the next; the host's clock is over many of them. `out`: what op
  // writes; a first row that is not finite is noted.
  absl::Status Measure(BenchRow row, int rotations, const TensorView& out,
                       absl::FunctionRef<absl::Status(int)> op);
  // The same of ops of another backend of the device.
  absl::Status MeasureOn(Backend& backend, BenchRow row, int rotations, const TensorView& out,
                         absl::FunctionRef<absl::Status(int)> op);

 private:
  absl::StatusOr<std::string> NoteOf(Backend& backend, const TensorView& out);

  const CudaBenchOptions options_;
  CudaReport& report_;
  std::unique_ptr<Backend> backend_;
  int64_t next_key_ = 0;
};

// Device memory of one case.
class CudaTensors {
 public:
  explicit CudaTensors(Backend& backend) : backend_(backend) {}

  // Random values, f32 or bf16.
  absl::StatusOr<TensorView> Random(DType dtype, std::vector<int64_t> shape, float scale = 1);
  // NaN, or -1 of an integer type.
  absl::StatusOr<TensorView> Unset(DType dtype, std::vector<int64_t> shape);
  template <typename T>
  absl::StatusOr<TensorView> Copy(DType dtype, const std::vector<T>& values) {
    ASSIGN_OR_RETURN(TensorView view, New(dtype, {static_cast<int64_t>(values.size())}));
    RETURN_IF_ERROR(
        backend_.Write(view, TensorView(const_cast<T*>(values.data()), dtype, {view.dim(0)})));
    return view;
  }

 private:
  absl::StatusOr<TensorView> New(DType dtype, const std::vector<int64_t>& shape);

  Backend& backend_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  uint64_t seed_ = 1;
};

struct CudaCase {
  std::string name;
  std::string what;
  std::function<absl::Status(CudaBench&)> run;
};

// Rows from which cuBLASLt is held against our kernel.
inline int32_t FewestCublasLtRows(const CudaBenchOptions& options) {
  return options.tiny ? 1 : 256;
}

// DeepSeek-V2-Lite's and V3's published dimensions; tiny ones with the same parts.
ModelConfig V2LiteConfig(bool tiny);
ModelConfig V3Config(bool tiny);

std::vector<CudaCase> RowCases();       // norms, rope, embedding, cache entries
std::vector<CudaCase> LinearCases();    // dense products
std::vector<CudaCase> CublasLtCases();  // the same of many rows by ours and by cuBLASLt
std::vector<CudaCase> MoeCases();       // router to combine
std::vector<CudaCase> MlaCases();       // attention
std::vector<CudaCase> ModelCases();     // whole steps

}  // namespace jevons
