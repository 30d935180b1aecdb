// The two halves of the emulator and what they know of each other: the grid (how the threads of one
// launch run) and the runtime (memory, streams, events, graphs).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <string>

namespace jevons::emu {

struct GridSpec {
  std::string kernel;  // name for reports
  dim3 grid;
  int block = 0;
  int smem_bytes = 0;
  bool early = false;  // may begin before the launch in front of it has ended
};

// grid_launch.cc. Runs `thread_body` once for every thread of the grid, to the end; called by the runtime
// when the launch's turn in its stream has come. A misuse goes to ReportMisuse, the rest of the
// grid is dropped, and cudaErrorLaunchFailure comes back. cudaErrorNotReady: what is left waits for
// another device or for the host; called again with the same body, which must live on, it looks again.
cudaError_t RunGrid(const GridSpec& spec, const std::function<void()>& thread_body);
// grid_launch.cc. For an early launch whose predecessor has not run yet: runs some of its blocks up to
// their threads' WaitForKernelBefore. RunGrid with the same body, which must live on, lets them go
// on. One launch at a time; while there is one, nothing is done for others.
cudaError_t BeginGrid(const GridSpec& spec, const std::function<void()>& thread_body);
// grid_launch.cc. Whether the launch has begun and waits for another device or for the host.
bool IsWaiting(const std::function<void()>& thread_body);
// grid_launch.cc. What has begun on the device and has not ended will not be run any more.
void ForgetGrids(int device);

// grid.cc. " in <kernel> block (x,y,z) thread t at file:line" of the kernel thread that runs now and
// of its last call of a wrapper; "" outside of kernels. ReportMisuse puts it behind its text.
std::string WhereInKernel();
// grid.cc. The last thing that ReportMisuse does: drops the grid whose thread runs now, by an
// exception that ends the thread; nothing outside of kernels.
void DropGrid();

// runtime.cc. Puts the launch into its stream (or into the graph that the stream records).
cudaError_t EnqueueKernel(cudaStream_t stream, GridSpec spec, std::function<void()> thread_body);

// runtime.cc. For the wrappers that read or write global memory: reports a misuse unless
// [address, address + bytes) lies in one living allocation, and counts the bytes read.
void CheckGlobalRead(const void* address, int64_t bytes);
void CheckGlobalWrite(const void* address, int64_t bytes);
// The device whose kernel runs now; -1: none.
int RunningDevice();
// Bytes that CheckGlobalRead has counted since ResetCounters, of all memory or of the allocation
// that holds `address`.
int64_t GlobalBytesRead();
int64_t GlobalBytesRead(const void* address);
void ResetCounters();

// Text with kernel, block, thread, file and line. By default it is printed and the process aborts;
// a test may take it instead.
void ReportMisuse(const std::string& text);
void TakeMisuses(bool take);  // false: back to the default
std::string LastMisuse();     // empties it; "" where there was none

// The seed of all random choices: JEVONS_EMU_SEED, else fixed. Printed with every misuse.
uint64_t Seed();
void SetSeed(uint64_t seed);

}  // namespace jevons::emu
