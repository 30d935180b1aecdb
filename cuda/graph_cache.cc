#include "cuda/graph_cache.h"

#include "cuda/cuda_error.h"

namespace jevons::cuda {

void GraphCache::Clear() {
  for (auto& [key, graph] : graphs_) {
    if (graph != nullptr) cudaGraphExecDestroy(graph);
  }
  graphs_.clear();
}

absl::Status GraphCache::Run(int64_t key, absl::FunctionRef<absl::Status()> ops,
                             cudaStream_t stream) {
  const auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    RETURN_IF_ERROR(ops());
    graphs_.emplace(key, nullptr);
    return absl::OkStatus();
  }
  if (found->second == nullptr) RETURN_IF_ERROR(Record(ops, stream, found->second));
  return ToStatus(cudaGraphLaunch(found->second, stream), "launch of a step's graph");
}

absl::Status GraphCache::Record(absl::FunctionRef<absl::Status()> ops, cudaStream_t stream,
                                cudaGraphExec_t& graph) {
  RETURN_IF_ERROR(ToStatus(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                           "start of a recording"));
  recording_ = true;
  const absl::Status status = ops();
  recording_ = false;
  cudaGraph_t recorded = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &recorded);
  if (!status.ok() || ended != cudaSuccess) {
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    return status.ok() ? ToStatus(ended, "end of a recording") : status;
  }
  const cudaError_t made = cudaGraphInstantiate(&graph, recorded, 0);
  cudaGraphDestroy(recorded);
  if (made != cudaSuccess) graph = nullptr;
  return ToStatus(made, "a step's graph");
}

}  // namespace jevons::cuda
