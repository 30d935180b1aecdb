// Streams under capture. Guarded by State::mutex.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "tests/cuda_emu/stream.h"

namespace jevons::emu {

struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  std::weak_ptr<Stream> origin;
  std::vector<std::weak_ptr<Stream>> streams;  // the origin and those that joined
  Graph graph;
  bool invalid = false;
  bool ended = false;
};

// Its streams are as before; nothing is kept of what was recorded.
void EndCapture(State& state, std::shared_ptr<Capture> capture);

// For calls that a capture may forbid (cudaMalloc, synchronising, ...): invalidates the captures
// that forbid it to this thread, and fails where there is one.
cudaError_t CheckUnsafeCall(State& state);

// For a call on the default stream: it would order the device's blocking streams, and none of them
// may be under capture.
cudaError_t CheckDefaultStream(State& state, int device);

// For a call that the stream's own capture forbids.
cudaError_t CheckNotCapturing(const Stream& stream);

// Adds a node behind what the stream has recorded.
cudaError_t CaptureWork(Stream& stream, std::shared_ptr<const Work> work);
cudaError_t CaptureGraph(Stream& stream, const Graph& graph);
// Records an event in a stream under capture.
std::shared_ptr<Mark> CaptureMark(const Stream& stream);
// Lets a stream wait for an event where one of the two is under capture. The mark may be null.
cudaError_t CaptureWait(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Mark>& mark);

// Runs one node whose turn may have come. cudaErrorNotReady: none can run now, or there are more.
cudaError_t RunGraphNode(State& state, GraphRun& run, bool* advanced);

}  // namespace jevons::emu
