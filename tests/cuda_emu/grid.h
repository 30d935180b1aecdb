// What the emulated headers of cuda/device/ ask of the grid that runs. Every function here is
// called by a kernel thread. Where a thread is in the kernel's source comes with each call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace jevons::emu {

// A place in the kernel's source. As a default argument, Here() is the place of the call.
struct Site {
  const char* file = nullptr;
  int line = 0;
};
constexpr Site Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return {file, line};
}

struct BlockFacts {
  dim3 block_idx;
  dim3 grid_dim;
  int block_dim = 0;
  int smem_bytes = 0;
  unsigned char* smem = nullptr;
};
struct ThreadFacts {
  const BlockFacts* block = nullptr;
  int idx = 0;
};
// The kernel thread that runs now; null while the host does.
extern ThreadFacts* running;

// Barriers. A memory edge leads from what a thread did before it came to what one does after.
void SyncThreads(Site at);
void SyncWarp(Site at);
void BarrierSync(int id, int num_threads, Site at);
void BarrierArrive(int id, int num_threads, Site at);
void ThreadFence();
// Lets other threads run, now and then.
void Yield();
// A counter that blocks meet at has changed: now and then others see it before this block goes on.
void CounterChanged();
// Lets all others run that can, of other blocks too; where none can ever again, a misuse.
void WaitForOthers(const char* where, Site at);
// The same for other devices and the host: where none can run, the launch is left as it is for a
// while.
void WaitForDevices(const char* where, Site at);
// Parks a thread of a launch whose predecessor has not run.
void WaitForKernelBefore(Site at);

void* SharedMemory(int64_t bytes, Site at);

// Collectives of one warp, named for reports: `value` of the source lane; the values of all lanes,
// valid until this lane's next collective.
uint64_t Exchange(const char* name, uint64_t value, int source_lane, Site at);
const uint64_t* Gather(const char* name, uint64_t value, Site at);
void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site at);
void LdMatrix4(uint32_t (&r)[4], const void* shared_row, bool transposed, Site at);

// Global memory, in one piece of at most 16 bytes.
void LoadGlobal(void* to, const void* global, int bytes, Site at);

// peer.cc. Memory of other devices.
void StorePeer(void* peer, const void* from, int bytes, Site at);
void StoreReleaseSystem(uint64_t* flag, uint64_t value, Site at);
uint64_t LoadAcquireSystem(const uint64_t* flag, Site at);

// Asynchronous copies.
uint32_t SharedAddress(const void* shared, Site at);
void CpAsync(void* shared, const void* global, int size, int bytes, Site at);
void CpAsyncCommit(Site at);
void CpAsyncWait(int pending, Site at);
void MBarrierInit(uint64_t* barrier, int num_arrivals, Site at);
void FenceMBarrierInit();
void MBarrierArrive(uint64_t* barrier, int bytes, Site at);
void MBarrierWait(uint64_t* barrier, uint32_t parity, Site at);
void BulkCopy(void* shared, const void* global, int bytes, uint64_t* barrier, Site at);
void FenceProxyAsync();

// Products of a warpgroup. `a` is null where a_descriptor counts.
struct WgmmaArgs {
  int n = 0;
  float* d = nullptr;
  const uint32_t* a = nullptr;
  uint64_t a_descriptor = 0;
  uint64_t b_descriptor = 0;
  bool accumulate = false;
  bool transposed_b = false;
  bool e4m3 = false;  // else bf16
};
void WgmmaIssue(const WgmmaArgs& args, Site at);
void WgmmaFence(Site at);
void WgmmaCommit(Site at);
void WgmmaWait(int pending, Site at);
// A thread of the warp has so many from here on.
void SetRegisters(int num, Site at);

}  // namespace jevons::emu
