#include "tests/cuda_emu/stream.h"

#include <algorithm>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/memory.h"

namespace jevons::emu {
namespace {

enum class Progress { kBlocked, kAdvanced };

void Finish(Mark& mark) {
  mark.done = true;
  mark.when = std::chrono::steady_clock::now();
}

// Runs what is first in the queue, if its turn has come.
Progress RunFirst(State& state, Stream& stream) {
  Op& op = stream.queue.front();
  cudaError_t error = cudaSuccess;
  bool advanced = false;
  SetRunningDevice(stream.device);
  if (op.record != nullptr) {
    Finish(*op.record);
  } else if (op.wait != nullptr) {
    if (!op.wait->done) error = cudaErrorNotReady;
  } else if (op.graph != nullptr) {
    error = RunGraphNode(state, *op.graph, &advanced);
  } else {
    if (op.execution == 0) op.execution = ++state.num_executions;
    if (stream.queue.size() > 1 && stream.queue[1].work != nullptr) {
      error = BeginEarly(*op.work, *stream.queue[1].work);
    }
    if (error == cudaSuccess) error = op.work->run(op.execution);
  }
  SetRunningDevice(-1);
  if (error == cudaErrorNotReady) return advanced ? Progress::kAdvanced : Progress::kBlocked;
  if (error != cudaSuccess) {
    FailDevice(state, stream.device, error);
  } else {
    stream.queue.pop_front();
  }
  state.changed.notify_all();
  return Progress::kAdvanced;
}

// The stream whose work `stream` waits for; itself where it does not wait for an event.
std::shared_ptr<Stream> Waited(std::shared_ptr<Stream> stream) {
  while (!stream->queue.empty()) {
    const std::shared_ptr<Mark>& wait = stream->queue.front().wait;
    if (wait == nullptr || wait->done) break;
    std::shared_ptr<Stream> next = wait->stream.lock();
    if (next == nullptr) break;
    stream = std::move(next);
  }
  return stream;
}

// How far other streams get while one is waited for.
enum class Order { kAny, kWantedFirst, kWantedLast };

bool RunOne(State& state, Order order, const std::shared_ptr<Stream>& wanted) {
  std::erase_if(state.running, [](auto& s) { return s->destroyed && s->queue.empty(); });
  std::vector<std::shared_ptr<Stream>> streams;
  for (const auto& stream : state.running) {
    if (!stream->queue.empty()) streams.push_back(stream);
  }
  std::shuffle(streams.begin(), streams.end(), state.random);
  if (wanted != nullptr && order != Order::kAny) {
    const std::shared_ptr<Stream> needed = Waited(wanted);
    std::stable_partition(streams.begin(), streams.end(),
                          [&](auto& s) { return (s == needed) == (order == Order::kWantedFirst); });
  }
  return std::any_of(streams.begin(), streams.end(),
                     [&](auto& s) { return RunFirst(state, *s) == Progress::kAdvanced; });
}

void Queue(State& state, Stream& stream, Op op) {
  stream.queue.push_back(std::move(op));
  state.changed.notify_all();
}

}  // namespace

std::shared_ptr<Stream> FindStream(State& state, cudaStream_t handle) {
  if (handle == nullptr || handle == cudaStreamLegacy) {
    return state.devices[CurrentDevice()].default_stream;
  }
  return state.streams.Find(handle);
}

cudaError_t BeginEarly(const Work& work, const Work& next) {
  return work.is_kernel && next.begin != nullptr ? next.begin() : cudaSuccess;
}

cudaError_t QueueInOrder(State& state, const std::shared_ptr<Stream>& stream, Op op) {
  std::vector<std::shared_ptr<Stream>> others;
  if (stream->is_default) {
    const cudaError_t error = CheckDefaultStream(state, stream->device);
    if (error != cudaSuccess) return error;
    for (const auto& s : state.running) {
      if (s != stream && s->device == stream->device && s->blocking) others.push_back(s);
    }
  }
  for (const auto& other : others) AddWait(state, stream, AddMark(state, other));
  Queue(state, *stream, std::move(op));
  if (!others.empty()) {
    const std::shared_ptr<Mark> end = AddMark(state, stream);
    for (const auto& other : others) AddWait(state, other, end);
  }
  RunSome(state);
  return cudaSuccess;
}

cudaError_t Submit(State& state, cudaStream_t handle, Work work) {
  const std::shared_ptr<Stream> stream = FindStream(state, handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  auto shared = std::make_shared<const Work>(std::move(work));
  if (stream->capture != nullptr) return CaptureWork(*stream, std::move(shared));
  return QueueInOrder(state, stream, Op{.work = std::move(shared)});
}

cudaError_t SubmitGraph(State& state, cudaStream_t handle, std::shared_ptr<const Graph> graph) {
  const std::shared_ptr<Stream> stream = FindStream(state, handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture != nullptr) return CaptureGraph(*stream, *graph);
  auto run = std::make_shared<GraphRun>();
  run->done.resize(graph->nodes.size());
  run->execution.resize(graph->nodes.size());
  run->graph = std::move(graph);
  return QueueInOrder(state, stream, Op{.graph = std::move(run)});
}

std::shared_ptr<Mark> AddMark(State& state, const std::shared_ptr<Stream>& stream) {
  auto mark = std::make_shared<Mark>();
  mark->stream = stream;
  Queue(state, *stream, Op{.record = mark});
  return mark;
}

void AddWait(State& state, const std::shared_ptr<Stream>& stream, std::shared_ptr<Mark> mark) {
  if (!mark->done) Queue(state, *stream, Op{.wait = std::move(mark)});
}

cudaError_t RunUntil(State& state, Lock& lock, int device, const std::string& what,
                     const std::shared_ptr<Stream>& wanted, const std::function<bool()>& done) {
  using Clock = std::chrono::steady_clock;
  const Order order = static_cast<Order>(state.Below(3));
  Clock::time_point last_progress = Clock::now();
  while (state.devices[device].sticky == cudaSuccess && !done()) {
    if (RunOne(state, order, wanted)) {
      last_progress = Clock::now();
      continue;
    }
    // Delayed collectives count how often they were asked.
    state.changed.wait_for(lock, std::chrono::milliseconds(1));
    const auto idle = Clock::now() - last_progress;
    if (idle > std::chrono::milliseconds(state.hang_limit_ms)) {
      ReportMisuse(what + " hangs: nothing that it waits for can run");
      return cudaErrorLaunchTimeout;
    }
  }
  return state.devices[device].sticky;
}

cudaError_t RunUntilDone(State& state, Lock& lock, const std::shared_ptr<Mark>& mark) {
  const std::shared_ptr<Stream> stream = mark->stream.lock();
  return RunUntil(state, lock, stream == nullptr ? CurrentDevice() : stream->device,
                  "a wait for a stream or an event", stream, [&] { return mark->done; });
}

cudaError_t RunDevice(State& state, Lock& lock, int device) {
  return RunUntil(state, lock, device, "a wait for the whole device", nullptr, [&] {
    return std::all_of(state.running.begin(), state.running.end(),
                       [&](auto& s) { return s->device != device || s->queue.empty(); });
  });
}

void RunSome(State& state) {
  if (state.Below(4) != 0) return;
  for (int left = 1 + state.Below(4); left > 0; --left) RunOne(state, Order::kAny, nullptr);
}

void FailDevice(State& state, int device, cudaError_t error) {
  state.devices[device].sticky = error;
  ForgetGrids(device);
  for (const auto& stream : state.running) {
    if (stream->device != device) continue;
    for (const Op& op : stream->queue) {
      if (op.record != nullptr) Finish(*op.record);
    }
    stream->queue.clear();
  }
}

}  // namespace jevons::emu
