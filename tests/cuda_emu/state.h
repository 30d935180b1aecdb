// What the parts of the emulated runtime share. All of it is guarded by State::mutex.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "tests/cuda_emu/runtime.h"

namespace jevons::emu {

using Lock = std::unique_lock<std::mutex>;

struct Stream;
struct Event;
struct Capture;
struct Graph;

// The living objects of one kind. A handle is never used twice, so that one of a destroyed object
// is known as such.
template <typename Handle, typename T>
class Table {
 public:
  Handle Add(std::shared_ptr<T> object) {
    const Handle handle = reinterpret_cast<Handle>(next_ += 256);
    objects_.emplace(handle, std::move(object));
    return handle;
  }
  // Null where there is none.
  std::shared_ptr<T> Find(Handle handle) const {
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }
  std::shared_ptr<T> Remove(Handle handle) {
    std::shared_ptr<T> object = Find(handle);
    objects_.erase(handle);
    return object;
  }
  template <typename Predicate>
  void RemoveIf(Predicate predicate) {
    std::erase_if(objects_, [&](const auto& entry) { return predicate(*entry.second); });
  }
  int64_t size() const { return static_cast<int64_t>(objects_.size()); }

 private:
  std::map<Handle, std::shared_ptr<T>> objects_;
  uintptr_t next_ = 0x1000;
};

struct Device {
  cudaError_t sticky = cudaSuccess;
  int64_t used_bytes = 0;
  std::shared_ptr<Stream> default_stream;
};

struct State {
  State();

  std::mutex mutex;
  std::condition_variable changed;  // work was queued or has run, or a peer has come
  std::mt19937_64 random;

  DeviceOptions options;
  std::vector<Device> devices;
  std::map<std::pair<int, const void*>, int> max_smem;  // of (device, kernel)

  std::vector<std::shared_ptr<Stream>> running;  // every stream that may have work
  std::vector<std::shared_ptr<Capture>> captures;
  Table<cudaStream_t, Stream> streams;
  Table<cudaEvent_t, Event> events;
  Table<cudaGraph_t, const Graph> graphs;
  Table<cudaGraphExec_t, const Graph> graph_execs;
  int64_t num_executions = 0;
  int64_t hang_limit_ms = 60000;

  int64_t num_calls[kNumCallKinds] = {};
  int64_t fail_at[kNumCallKinds] = {};  // call number; 0: none
  cudaError_t fail_with = cudaSuccess;

  // Uniform in [0, n).
  int Below(int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); }
};
State& GetState();

int CurrentDevice();  // of this thread
int MaxSmemBytes(const DeviceOptions& options);

// Counts a call; the error planned for it, or success.
cudaError_t CountCall(State& state, CallKind kind);
// Makes an error this thread's last one, and gives it back.
cudaError_t NoteError(cudaError_t error);

// One API call that may fail: body(state, lock) runs unless the device has failed for good or a
// failure is planned.
template <typename Body>
cudaError_t ApiCall(CallKind kind, Body body) {
  State& state = GetState();
  Lock lock(state.mutex);
  cudaError_t error = state.devices[CurrentDevice()].sticky;
  if (state.options.count == 0) error = cudaErrorNoDevice;
  if (error == cudaSuccess) error = CountCall(state, kind);
  if (error == cudaSuccess) error = body(state, lock);
  return NoteError(error);
}

}  // namespace jevons::emu
