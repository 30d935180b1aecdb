// Steps recorded as CUDA graphs.
#pragma once

#include <cuda_runtime_api.h>

#include <unordered_map>

#include "absl/functional/function_ref.h"
#include "base/status.h"

namespace jevons::cuda {

// Used by one thread at a time.
class GraphCache {
 public:
  GraphCache() = default;
  ~GraphCache() { Clear(); }
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;

  // The first call with a key runs `ops` as they are, so that they may take the memory they need;
  // the second records and runs the graph; all later ones run the graph. An op that fails leaves
  // nothing recorded.
  absl::Status Run(int64_t key, absl::FunctionRef<absl::Status()> ops, cudaStream_t stream);

  // Forgets all that was recorded. Not while a recorded step runs.
  void Clear();
  bool recording() const { return recording_; }

 private:
  absl::Status Record(absl::FunctionRef<absl::Status()> ops, cudaStream_t stream,
                      cudaGraphExec_t& graph);

  std::unordered_map<int64_t, cudaGraphExec_t> graphs_;  // null: run once, not recorded
  bool recording_ = false;
};

}  // namespace jevons::cuda
