// Streams as queues, and who runs what is in them. Guarded by State::mutex.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/cuda_emu/state.h"

namespace jevons::emu {

// One recording of an event, or a place in a stream.
struct Mark {
  bool done = false;
  std::chrono::steady_clock::time_point when;
  std::weak_ptr<Stream> stream;
  std::shared_ptr<Capture> capture;  // recorded in a stream under capture:
  std::vector<int> nodes;            // behind these nodes of it
};

struct Event {
  int device = 0;
  bool timing = true;
  std::shared_ptr<Mark> mark;  // of the last recording; null: never recorded
};

// What a stream or a graph node does. `run` is called when its turn has come, and again for as long
// as it gives cudaErrorNotReady; `execution` tells one run of a replayed node from the others.
struct Work {
  std::string name;
  std::function<cudaError_t(int64_t execution)> run;
  bool is_kernel = false;
  std::function<cudaError_t()> begin = nullptr;  // of a launch that may begin early
};

struct GraphNode {
  std::shared_ptr<const Work> work;
  std::vector<int> needs;  // nodes before it
};

struct Graph {
  std::vector<GraphNode> nodes;
};

// One replay of a graph.
struct GraphRun {
  std::shared_ptr<const Graph> graph;
  std::vector<bool> done;
  std::vector<int64_t> execution;  // 0: not begun
  int num_done = 0;
};

// An entry of a queue: exactly one of the four.
struct Op {
  std::shared_ptr<const Work> work = nullptr;
  std::shared_ptr<GraphRun> graph = nullptr;
  std::shared_ptr<Mark> record = nullptr;
  std::shared_ptr<Mark> wait = nullptr;
  int64_t execution = 0;
};

struct Stream {
  int device = 0;
  bool is_default = false;
  bool blocking = true;  // ordered with the default stream
  bool destroyed = false;
  std::deque<Op> queue;
  std::shared_ptr<Capture> capture;  // null: not under capture
  std::vector<int> capture_end;      // nodes that the stream's next one comes behind
};

// The stream of a handle; null for one that is none. The default stream is that of the current
// device.
std::shared_ptr<Stream> FindStream(State& state, cudaStream_t handle);

// Before `work` runs: what comes behind it may begin.
cudaError_t BeginEarly(const Work& work, const Work& next);

// Puts work into a stream, or into the graph that is recorded there.
cudaError_t Submit(State& state, cudaStream_t handle, Work work);
cudaError_t SubmitGraph(State& state, cudaStream_t handle, std::shared_ptr<const Graph> graph);

// What is queued on the default stream comes after all that is in the blocking streams of its
// device, and before what they get later.
cudaError_t QueueInOrder(State& state, const std::shared_ptr<Stream>& stream, Op op);

// A mark behind all that is in the stream now.
std::shared_ptr<Mark> AddMark(State& state, const std::shared_ptr<Stream>& stream);
// Makes the stream's later work come after the mark.
void AddWait(State& state, const std::shared_ptr<Stream>& stream, std::shared_ptr<Mark> mark);

// Runs work in seeded order, waiting for other threads where there is none to run, until the mark
// is done, the device is empty, or the device has failed. `lock` is given up only while waiting.
cudaError_t RunUntilDone(State& state, Lock& lock, const std::shared_ptr<Mark>& mark);
cudaError_t RunDevice(State& state, Lock& lock, int device);
// The same for any condition; where nothing moves, `what` names the wait.
cudaError_t RunUntil(State& state, Lock& lock, int device, const std::string& what,
                     const std::shared_ptr<Stream>& wanted, const std::function<bool()>& done);
// Runs some work, perhaps none.
void RunSome(State& state);

// The device has failed for good: what is queued on it is dropped.
void FailDevice(State& state, int device, cudaError_t error);

}  // namespace jevons::emu
