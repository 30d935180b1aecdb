#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/memory.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace jevons::emu {
namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool ForbidsUnsafeCalls(const Capture& capture) {
  const bool own = capture.thread == std::this_thread::get_id();
  switch (thread_mode) {
    case cudaStreamCaptureModeRelaxed:
      return false;
    case cudaStreamCaptureModeThreadLocal:
      return own && capture.mode != cudaStreamCaptureModeRelaxed;
    default:
      return own ? capture.mode != cudaStreamCaptureModeRelaxed
                 : capture.mode == cudaStreamCaptureModeGlobal;
  }
}

void AddNodes(std::vector<int>& to, const std::vector<int>& nodes) {
  to.insert(to.end(), nodes.begin(), nodes.end());
  std::sort(to.begin(), to.end());
  to.erase(std::unique(to.begin(), to.end()), to.end());
}

// Whether every node comes before `end`, or is of it.
bool AllJoined(const Graph& graph, const std::vector<int>& end) {
  std::vector<bool> reached(graph.nodes.size());
  std::vector<int> open = end;
  while (!open.empty()) {
    const int node = open.back();
    open.pop_back();
    if (reached[node]) continue;
    reached[node] = true;
    open.insert(open.end(), graph.nodes[node].needs.begin(), graph.nodes[node].needs.end());
  }
  return std::find(reached.begin(), reached.end(), false) == reached.end();
}

// The kernel that is behind this node and no other may begin.
cudaError_t BeginBehind(const std::vector<GraphNode>& nodes, int node) {
  for (const GraphNode& next : nodes) {
    if (next.needs.size() != 1 || next.needs[0] != node) continue;
    const cudaError_t error = BeginEarly(*nodes[node].work, *next.work);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t TakeGraph(State& state, const std::shared_ptr<Stream>& stream,
                      std::shared_ptr<const Graph>& graph) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr) return cudaErrorIllegalState;
  if (capture->origin.lock() != stream) {
    capture->invalid = true;
    return cudaErrorStreamCaptureUnmatched;
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  const std::vector<int> end = stream->capture_end;
  Graph recorded = std::exchange(capture->graph, {});
  EndCapture(state, capture);
  const cudaError_t sticky = state.devices[stream->device].sticky;
  if (sticky != cudaSuccess) return sticky;
  // A planned failure stands for one of the end itself.
  const cudaError_t planned = CountCall(state, CallKind::kGraph);
  if (planned != cudaSuccess) return planned;
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!AllJoined(recorded, end)) return cudaErrorStreamCaptureUnjoined;
  graph = std::make_shared<const Graph>(std::move(recorded));
  return cudaSuccess;
}

}  // namespace

void EndCapture(State& state, std::shared_ptr<Capture> capture) {
  capture->ended = true;
  capture->graph = {};  // events may hold the capture
  for (const auto& weak : capture->streams) {
    if (const auto stream = weak.lock()) {
      stream->capture = nullptr;
      stream->capture_end.clear();
    }
  }
  std::erase(state.captures, capture);
}

cudaError_t CheckUnsafeCall(State& state) {
  cudaError_t error = cudaSuccess;
  for (const auto& capture : state.captures) {
    if (!ForbidsUnsafeCalls(*capture)) continue;
    capture->invalid = true;
    error = cudaErrorStreamCaptureUnsupported;
  }
  return error;
}

cudaError_t CheckDefaultStream(State& state, int device) {
  cudaError_t error = cudaSuccess;
  for (const auto& stream : state.running) {
    if (stream->device != device || !stream->blocking || stream->capture == nullptr) continue;
    stream->capture->invalid = true;
    error = cudaErrorStreamCaptureImplicit;
  }
  return error;
}

cudaError_t CheckNotCapturing(const Stream& stream) {
  if (stream.capture == nullptr) return cudaSuccess;
  stream.capture->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t CaptureWork(Stream& stream, std::shared_ptr<const Work> work) {
  if (stream.capture->invalid) return cudaErrorStreamCaptureInvalidated;
  std::vector<GraphNode>& nodes = stream.capture->graph.nodes;
  nodes.push_back({.work = std::move(work), .needs = stream.capture_end});
  stream.capture_end = {static_cast<int>(nodes.size()) - 1};
  return cudaSuccess;
}

cudaError_t CaptureGraph(Stream& stream, const Graph& graph) {
  if (stream.capture->invalid) return cudaErrorStreamCaptureInvalidated;
  std::vector<GraphNode>& nodes = stream.capture->graph.nodes;
  const int first = static_cast<int>(nodes.size());
  std::vector<int> ends(graph.nodes.size());
  std::iota(ends.begin(), ends.end(), first);
  for (const GraphNode& node : graph.nodes) {
    GraphNode copy = node;
    for (int& need : copy.needs) {
      need += first;
      std::erase(ends, need);
    }
    if (copy.needs.empty()) copy.needs = stream.capture_end;
    nodes.push_back(std::move(copy));
  }
  if (!ends.empty()) stream.capture_end = std::move(ends);
  return cudaSuccess;
}

std::shared_ptr<Mark> CaptureMark(const Stream& stream) {
  auto mark = std::make_shared<Mark>();
  mark->capture = stream.capture;
  mark->nodes = stream.capture_end;
  return mark;
}

cudaError_t CaptureWait(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Mark>& mark) {
  const std::shared_ptr<Capture> own = stream->capture;
  const std::shared_ptr<Capture> other = mark == nullptr ? nullptr : mark->capture;
  if (own != nullptr && own->invalid) return cudaErrorStreamCaptureInvalidated;
  if (other != nullptr && other->ended) {
    if (own != nullptr) own->invalid = true;
    return own == nullptr ? cudaErrorCapturedEvent : cudaErrorStreamCaptureIsolation;
  }
  if (other == nullptr) {
    own->invalid = true;
    return cudaErrorStreamCaptureIsolation;
  }
  if (other->invalid) return cudaErrorStreamCaptureInvalidated;
  if (own == nullptr) {
    if (stream->is_default) {
      other->invalid = true;
      return cudaErrorStreamCaptureImplicit;
    }
    stream->capture = other;
    other->streams.push_back(stream);
  } else if (own != other) {
    own->invalid = true;
    other->invalid = true;
    return cudaErrorStreamCaptureMerge;
  }
  AddNodes(stream->capture_end, mark->nodes);
  return cudaSuccess;
}

cudaError_t RunGraphNode(State& state, GraphRun& run, bool* advanced) {
  const std::vector<GraphNode>& nodes = run.graph->nodes;
  std::vector<int> ready;
  for (int i = 0; i < static_cast<int>(nodes.size()); ++i) {
    const auto is_done = [&](int need) -> bool { return run.done[need]; };
    if (!run.done[i] && std::all_of(nodes[i].needs.begin(), nodes[i].needs.end(), is_done)) {
      ready.push_back(i);
    }
  }
  std::shuffle(ready.begin(), ready.end(), state.random);
  for (const int node : ready) {
    if (run.execution[node] == 0) run.execution[node] = ++state.num_executions;
    cudaError_t error = BeginBehind(nodes, node);
    if (error == cudaSuccess) error = nodes[node].work->run(run.execution[node]);
    if (error == cudaErrorNotReady) continue;
    if (error != cudaSuccess) return error;
    run.done[node] = true;
    ++run.num_done;
    *advanced = true;
    break;
  }
  return run.num_done == static_cast<int>(nodes.size()) ? cudaSuccess : cudaErrorNotReady;
}

}  // namespace jevons::emu

using namespace jevons::emu;

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return ApiCall(CallKind::kGraph, [&](State& state, Lock&) {
    const std::shared_ptr<Stream> stream = FindStream(state, handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->is_default) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture != nullptr) return cudaErrorIllegalState;
    auto capture = std::make_shared<Capture>();
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->origin = stream;
    capture->streams.push_back(stream);
    stream->capture = capture;
    stream->capture_end.clear();
    state.captures.push_back(std::move(capture));
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  State& state = GetState();
  const Lock lock(state.mutex);
  *graph = nullptr;
  std::shared_ptr<const Graph> made;
  const cudaError_t error = TakeGraph(state, FindStream(state, handle), made);
  if (error == cudaSuccess) *graph = state.graphs.Add(std::move(made));
  return NoteError(error);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return ApiCall(CallKind::kGraph, [&](State& state, Lock&) {
    const std::shared_ptr<Stream> stream = FindStream(state, handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    *status = stream->capture == nullptr ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return stream->is_default ? CheckDefaultStream(state, stream->device) : cudaSuccess;
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t handle,
                                 unsigned long long flags) {
  return ApiCall(CallKind::kGraph, [&](State& state, Lock&) {
    std::shared_ptr<const Graph> graph = state.graphs.Find(handle);
    if (graph == nullptr) return cudaErrorInvalidValue;
    *exec = state.graph_execs.Add(std::move(graph));
    return cudaSuccess;
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  return ApiCall(CallKind::kGraph, [&](State& state, Lock&) {
    const bool known = state.graph_execs.Find(exec) != nullptr && FindStream(state, stream);
    return known ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return ApiCall(CallKind::kGraph, [&](State& state, Lock&) {
    std::shared_ptr<const Graph> graph = state.graph_execs.Find(exec);
    if (graph == nullptr) return cudaErrorInvalidResourceHandle;
    return SubmitGraph(state, stream, std::move(graph));
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  State& state = GetState();
  const Lock lock(state.mutex);
  return NoteError(state.graphs.Remove(graph) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  State& state = GetState();
  const Lock lock(state.mutex);
  return NoteError(state.graph_execs.Remove(exec) ? cudaSuccess : cudaErrorInvalidValue);
}
