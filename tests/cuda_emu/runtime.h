// What a test may ask of the emulated runtime. All functions are thread-safe.
//
// Streams are queues. Work runs late: when something waits for it, and now and then at a call that
// queues more, as the seed decides; what no event orders runs in seeded random order. A query lets
// some work run, so polling comes to an end. Host functions run on threads of their own. One lock
// guards everything; kernels and copies run under it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace jevons::emu {

// The major number of the compute capability: JEVONS_EMU_MAJOR, else 9.
int DefaultMajor();

// JEVONS_EMU_DEVICES, else 1.
int DefaultCount();

struct DeviceOptions {
  int count = DefaultCount();
  int major = DefaultMajor();
  int minor = 0;
  int num_sms = 4;
  int64_t memory_bytes = int64_t{1} << 30;
};
// Replaces the devices; to be called while nothing of the old ones is in use. The shared memory of
// a block follows the compute capability.
void SetDevice(const DeviceOptions& options);

// Calls of the runtime API, and what a planned failure may hit. Calls that release something are
// not counted.
enum class CallKind {
  kAllocation,  // device and page-locked memory
  kLaunch,      // kernels, their attributes, host functions
  kCopy,        // copies and fills
  kStream,      // create, wait, query, synchronise
  kEvent,
  kGraph,
  kDevice,     // count, properties, memory, synchronise
  kExecution,  // a kernel when it runs: the error stays until cudaDeviceReset
  kEarly,      // a kernel that begins before the one in front has run: as kExecution
};
inline constexpr int kNumCallKinds = 9;

// The n-th call of the kind from now on, counted from 1, fails with `error` and does nothing.
// Replaces what was planned before.
void FailNth(CallKind kind, int64_t n, cudaError_t error);
// Calls of the kind since ResetCalls.
int64_t NumCalls(CallKind kind);
// Also forgets the planned failure.
void ResetCalls();

// What was created and not yet released.
struct Outstanding {
  int64_t allocations = 0;
  int64_t pinned = 0;
  int64_t streams = 0;
  int64_t events = 0;
  int64_t graphs = 0;
  int64_t graph_execs = 0;

  int64_t total() const { return allocations + pinned + streams + events + graphs + graph_execs; }
};
Outstanding OutstandingObjects();
int64_t OutstandingAllocations();

// A wait that sees no progress for so long is a misuse and fails with cudaErrorLaunchTimeout.
// The default is a minute.
void SetHangLimit(int64_t milliseconds);

}  // namespace jevons::emu
