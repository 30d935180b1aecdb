// The API's calls on streams and events.
#include <thread>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/memory.h"

using namespace jevons::emu;

namespace {

std::shared_ptr<Mark> DoneMark() {
  auto mark = std::make_shared<Mark>();
  mark->done = true;
  return mark;
}

// What a wait on the host for an event waits for; a never recorded event is done.
cudaError_t FindMark(State& state, cudaEvent_t handle, std::shared_ptr<Mark>& mark) {
  const std::shared_ptr<Event> event = state.events.Find(handle);
  if (event == nullptr) return cudaErrorInvalidResourceHandle;
  mark = event->mark != nullptr ? event->mark : DoneMark();
  if (mark->capture == nullptr) return CheckUnsafeCall(state);
  mark->capture->invalid = true;
  return cudaErrorCapturedEvent;
}

// The same for a stream.
cudaError_t FindEnd(State& state, cudaStream_t handle, std::shared_ptr<Mark>& mark) {
  const std::shared_ptr<Stream> stream = FindStream(state, handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  const cudaError_t error = CheckNotCapturing(*stream);
  if (error != cudaSuccess) return error;
  mark = std::make_shared<Mark>();
  mark->stream = stream;
  return QueueInOrder(state, stream, Op{.record = mark});
}

}  // namespace

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return ApiCall(CallKind::kStream, [&](State& state, Lock&) {
    auto made = std::make_shared<Stream>();
    made->device = CurrentDevice();
    made->blocking = (flags & cudaStreamNonBlocking) == 0;
    state.running.push_back(made);
    *stream = state.streams.Add(std::move(made));
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

// What is in the stream still runs.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  State& state = GetState();
  const Lock lock(state.mutex);
  const std::shared_ptr<Stream> stream = state.streams.Remove(handle);
  if (stream == nullptr) return NoteError(cudaErrorInvalidResourceHandle);
  if (const std::shared_ptr<Capture> capture = stream->capture) {
    capture->invalid = true;
    if (capture->origin.lock() == stream) EndCapture(state, capture);
  }
  stream->destroyed = true;
  return NoteError(state.devices[stream->device].sticky);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  return ApiCall(CallKind::kStream, [&](State& state, Lock& lock) {
    std::shared_ptr<Mark> mark;
    const cudaError_t error = FindEnd(state, handle, mark);
    if (error != cudaSuccess) return error;
    return RunUntilDone(state, lock, mark);
  });
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  return ApiCall(CallKind::kStream, [&](State& state, Lock&) {
    RunSome(state);
    const std::shared_ptr<Stream> stream = FindStream(state, handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    const cudaError_t error = CheckNotCapturing(*stream);
    if (error != cudaSuccess) return error;
    return stream->queue.empty() ? state.devices[stream->device].sticky : cudaErrorNotReady;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned flags) {
  return ApiCall(CallKind::kStream, [&](State& state, Lock&) {
    const std::shared_ptr<Stream> stream = FindStream(state, handle);
    const std::shared_ptr<Event> event = state.events.Find(event_handle);
    if (stream == nullptr || event == nullptr) return cudaErrorInvalidResourceHandle;
    const std::shared_ptr<Mark>& mark = event->mark;
    if (stream->capture != nullptr || (mark != nullptr && mark->capture != nullptr)) {
      return CaptureWait(stream, mark);
    }
    if (mark != nullptr) AddWait(state, stream, mark);
    return cudaSuccess;
  });
}

// On a thread of its own: it may wait for what other threads do with the runtime.
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* user_data) {
  return ApiCall(CallKind::kLaunch, [&](State& state, Lock&) {
    auto finished = std::make_shared<std::map<int64_t, bool>>();  // by execution
    return Submit(state, stream, {"a host function", [=](int64_t execution) {
                                    const auto found = finished->find(execution);
                                    if (found != finished->end()) {
                                      const bool done = found->second;
                                      if (done) finished->erase(found);
                                      return done ? cudaSuccess : cudaErrorNotReady;
                                    }
                                    finished->emplace(execution, false);
                                    std::thread([=] {
                                      function(user_data);
                                      State& state = GetState();
                                      const Lock lock(state.mutex);
                                      (*finished)[execution] = true;
                                      state.changed.notify_all();
                                    }).detach();
                                    return cudaErrorNotReady;
                                  }});
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return ApiCall(CallKind::kEvent, [&](State& state, Lock&) {
    auto made = std::make_shared<Event>();
    made->device = CurrentDevice();
    made->timing = (flags & cudaEventDisableTiming) == 0;
    *event = state.events.Add(std::move(made));
    return cudaSuccess;
  });
}

// Waits for its last recording stay.
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  State& state = GetState();
  const Lock lock(state.mutex);
  if (state.events.Remove(event) == nullptr) return NoteError(cudaErrorInvalidResourceHandle);
  return NoteError(state.devices[CurrentDevice()].sticky);
}

cudaError_t cudaEventRecord(cudaEvent_t event_handle, cudaStream_t handle) {
  return ApiCall(CallKind::kEvent, [&](State& state, Lock&) {
    const std::shared_ptr<Stream> stream = FindStream(state, handle);
    const std::shared_ptr<Event> event = state.events.Find(event_handle);
    if (stream == nullptr || event == nullptr || stream->device != event->device) {
      return cudaErrorInvalidResourceHandle;
    }
    if (stream->capture != nullptr) {
      if (stream->capture->invalid) return cudaErrorStreamCaptureInvalidated;
      event->mark = CaptureMark(*stream);
      return cudaSuccess;
    }
    auto mark = std::make_shared<Mark>();
    mark->stream = stream;
    const cudaError_t error = QueueInOrder(state, stream, Op{.record = mark});
    if (error == cudaSuccess) event->mark = std::move(mark);
    return error;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return ApiCall(CallKind::kEvent, [&](State& state, Lock& lock) {
    std::shared_ptr<Mark> mark;
    const cudaError_t error = FindMark(state, event, mark);
    if (error != cudaSuccess) return error;
    return RunUntilDone(state, lock, mark);
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return ApiCall(CallKind::kEvent, [&](State& state, Lock&) {
    RunSome(state);
    std::shared_ptr<Mark> mark;
    const cudaError_t error = FindMark(state, event, mark);
    if (error != cudaSuccess) return error;
    return mark->done ? state.devices[CurrentDevice()].sticky : cudaErrorNotReady;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return ApiCall(CallKind::kEvent, [&](State& state, Lock&) {
    const std::shared_ptr<Event> events[2] = {state.events.Find(start), state.events.Find(end)};
    for (const auto& event : events) {
      const bool usable = event != nullptr && event->timing && event->mark != nullptr;
      if (!usable || event->mark->capture != nullptr) return cudaErrorInvalidResourceHandle;
    }
    const Mark& first = *events[0]->mark;
    const Mark& second = *events[1]->mark;
    if (!first.done || !second.done) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(second.when - first.when).count();
    return cudaSuccess;
  });
}
