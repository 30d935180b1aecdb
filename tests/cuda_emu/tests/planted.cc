// Kernels with one bug each, for planted_test.cc, which builds this program with AddressSanitizer
// and with ThreadSanitizer: `planted <name>` runs one. A line that a report must name ends in a
// comment with the kernel's name.
#include <cstdio>
#include <cstring>

#include "cuda/device/launch.h"
#include "cuda/device/mbarrier.h"
#include "cuda/device/warp.h"
#include "cuda/device/wgmma.h"

namespace jevons::cuda {
namespace {

using device::ThreadIdx;

struct Params {
  int* data = nullptr;  // [kNum] ints, 0, 1, 2, ...
};
constexpr int kNum = 4096;
constexpr int kBlock = 128;
constexpr int kSmemBytes = 4096;

int* Shared() { return &device::SharedMemory<int>(); }
void Use(int value) {
  if (value == -12345) std::puts("never");
}

__global__ void Good(const __grid_constant__ Params p) {
  int* const shared = Shared();
  device::CpAsync<4>(shared + 256 + ThreadIdx(), p.data + ThreadIdx(), 4);
  device::CpAsyncCommit();
  for (int i = 0; i < 3; ++i) {
    shared[ThreadIdx()] = ThreadIdx();
    device::SyncThreads();
    Use(shared[(ThreadIdx() + 40) % kBlock]);
    device::SyncThreads();
  }
  shared[ThreadIdx()] = device::ShflXor(ThreadIdx(), 1);
  device::SyncWarp();
  Use(shared[ThreadIdx() ^ 5]);
  device::CpAsyncWait<0>();
  device::SyncThreads();
  Use(shared[256 + (ThreadIdx() + 40) % kBlock]);
  p.data[kNum / 2 + device::BlockIdxX() * kBlock + ThreadIdx()] = 1;
}

__global__ void GoodLastBlock(const __grid_constant__ Params p) {
  p.data[1 + device::BlockIdxX() * kBlock + ThreadIdx()] = 1;
  device::SyncThreads();
  int* const last = Shared();
  if (ThreadIdx() == 0) *last = device::AtomicAddAcqRel(p.data, 1) == device::GridDimX() - 1;
  device::SyncThreads();
  if (*last) {
    for (int i = 0; i < device::GridDimX(); ++i)
      Use(p.data[1 + i * kBlock + ThreadIdx() * 7 % 128]);
  }
}

struct Stages {
  alignas(16) int stage[2][32];
  device::MBarrier full[2];
  device::MBarrier empty[2];
};
__device__ __forceinline__ Stages& InitStages() {
  auto& shared = device::SharedMemory<Stages>();
  if (ThreadIdx() == 0) {
    for (int s = 0; s < 2; ++s) {
      device::MBarrierInit(shared.full[s], 1);
      device::MBarrierInit(shared.empty[s], 3);
    }
    device::FenceMBarrierInit();
  }
  device::SyncThreads();
  return shared;
}

// Warp 0 fills two stages, the others read them.
__global__ void GoodPipeline(const __grid_constant__ Params p) {
  Stages& shared = InitStages();
  for (int i = 0; i < 6; ++i) {
    const int s = i % 2;
    const uint32_t parity = static_cast<uint32_t>(i / 2 % 2);
    if (ThreadIdx() == 0) {
      device::MBarrierWait(shared.empty[s], parity ^ 1);
      device::MBarrierArriveExpect(shared.full[s], 128);
      device::BulkCopy(shared.stage[s], p.data + i * 32, 128, shared.full[s]);
    } else if (device::WarpIdx() > 0) {
      device::MBarrierWait(shared.full[s], parity);
      Use(shared.stage[s][device::LaneIdx()]);
      device::SyncWarp();
      if (device::LaneIdx() == 0) device::MBarrierArrive(shared.empty[s]);
    }
  }
}

__global__ void MissingFullWait(const __grid_constant__ Params p) {
  Stages& shared = InitStages();
  if (ThreadIdx() == 0) {
    device::MBarrierArriveExpect(shared.full[0], 128);
    device::BulkCopy(shared.stage[0], p.data, 128, shared.full[0]);  // MissingFullWait
    device::MBarrierWait(shared.full[0], 0);
  } else {
    Use(shared.stage[0][device::LaneIdx()]);  // MissingFullWait
  }
}

__global__ void MissingSyncThreads(const __grid_constant__ Params p) {
  int* const shared = Shared();
  shared[ThreadIdx()] = 1;                   // MissingSyncThreads
  Use(shared[(ThreadIdx() + 40) % kBlock]);  // MissingSyncThreads
}

__global__ void MissingSecondSyncThreads(const __grid_constant__ Params p) {
  int* const shared = Shared();
  for (int i = 0; i < 2; ++i) {
    shared[ThreadIdx()] = i;  // MissingSecondSyncThreads
    device::SyncThreads();
    Use(shared[(ThreadIdx() + 40) % kBlock]);  // MissingSecondSyncThreads
  }
}

// A shuffle orders registers, not memory.
__global__ void MissingSyncWarp(const __grid_constant__ Params p) {
  int* const shared = Shared();
  shared[ThreadIdx()] = 1;  // MissingSyncWarp
  device::ShflXor(1, 1);
  Use(shared[ThreadIdx() ^ 1]);  // MissingSyncWarp
}

__global__ void RaceOfBlocks(const __grid_constant__ Params p) {
  if (ThreadIdx() == device::BlockIdxX()) p.data[0] = 1;  // RaceOfBlocks
}

__global__ void WaitAfterTheBarrier(const __grid_constant__ Params p) {
  int* const shared = Shared();
  device::CpAsync<4>(shared + ThreadIdx(), p.data, 4);  // WaitAfterTheBarrier
  device::CpAsyncCommit();
  device::SyncThreads();
  device::CpAsyncWait<0>();
  Use(shared[(ThreadIdx() + 40) % kBlock]);  // WaitAfterTheBarrier
}

__global__ void MissingWgmmaWait(const __grid_constant__ Params p) {
  uint16_t* const shared = &device::SharedMemory<uint16_t>();
  float d[4] = {};
  const uint32_t a[4] = {};
  for (int i = 0; i < 2; ++i) {
    shared[ThreadIdx()] = 0;  // MissingWgmmaWait
    device::FenceProxyAsync();
    device::SyncThreads();
    device::WgmmaFence(d);
    const uint64_t b = device::SmemDescriptor(shared, 128, 256, device::Swizzle::kNone);
    device::WgmmaBf16<8>(d, a, b, true);  // MissingWgmmaWait
    device::WgmmaCommit();
  }
  device::WgmmaWait<0>(d);
}

__global__ void ReadPastABuffer(const __grid_constant__ Params p) {
  const int i = kNum - kBlock + 1 + ThreadIdx();
  Use(p.data[i]);  // ReadPastABuffer
}

__global__ void WritePastSharedMemory(const __grid_constant__ Params p) {
  Shared()[kSmemBytes / 4 - kBlock + 1 + ThreadIdx()] = 1;  // WritePastSharedMemory
}

// Each reads what the one before it in the stream has written.
__global__ void GoodEarly(const __grid_constant__ Params p) {
  device::FollowKernelBefore();
  const int i = device::BlockIdxX() * kBlock + ThreadIdx();
  Use(p.data[kNum / 2 + i]);
  p.data[kNum / 2 + i] = 1;
}
__global__ void ReadBeforeTheWait(const __grid_constant__ Params p) {
  const int i = device::BlockIdxX() * kBlock + ThreadIdx();
  Use(p.data[kNum / 2 + i]);  // ReadBeforeTheWait
  device::FollowKernelBefore();
  p.data[kNum / 2 + i] = 1;  // ReadBeforeTheWait
}

// The kernel three times, recorded: the second and the third may begin early.
cudaError_t RunEarly(void (*kernel)(const Params), LaunchShape shape, const Params& params) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  for (int i = 0; i < 3; ++i) {
    Launch(kernel, shape, stream, params);
    shape.early = true;
  }
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  cudaGraphLaunch(exec, stream);
  const cudaError_t error = cudaStreamSynchronize(stream);
  cudaGraphExecDestroy(exec);
  cudaStreamDestroy(stream);
  return error;
}

int Run(const char* name) {
  struct Entry {
    const char* name;
    void (*kernel)(const Params);
    bool early = false;
  };
#define JEVONS_KERNEL(name) \
  { #name, name }
  const Entry entries[] = {
      JEVONS_KERNEL(Good),
      JEVONS_KERNEL(GoodLastBlock),
      JEVONS_KERNEL(GoodPipeline),
      JEVONS_KERNEL(MissingFullWait),
      JEVONS_KERNEL(MissingSyncThreads),
      JEVONS_KERNEL(MissingSecondSyncThreads),
      JEVONS_KERNEL(MissingSyncWarp),
      JEVONS_KERNEL(RaceOfBlocks),
      JEVONS_KERNEL(WaitAfterTheBarrier),
      JEVONS_KERNEL(MissingWgmmaWait),
      JEVONS_KERNEL(ReadPastABuffer),
      JEVONS_KERNEL(WritePastSharedMemory),
      {"GoodEarly", GoodEarly, true},
      {"ReadBeforeTheWait", ReadBeforeTheWait, true},
  };
#undef JEVONS_KERNEL
  Params params;
  if (cudaMalloc(&params.data, kNum * 4) != cudaSuccess) return 2;
  std::memset(params.data, 0, kNum * 4);
  for (const Entry& entry : entries) {
    if (std::strcmp(entry.name, name) != 0) continue;
    const LaunchShape shape{.grid = dim3(4), .block = kBlock, .smem_bytes = kSmemBytes};
    if (entry.early && RunEarly(entry.kernel, shape, params) != cudaSuccess) return 2;
    for (int i = 0; i < 3 && !entry.early; ++i) {
      params.data[0] = 0;
      if (Launch(entry.kernel, shape, nullptr, params) != cudaSuccess) return 2;
      if (cudaDeviceSynchronize() != cudaSuccess) return 2;
    }
    cudaFree(params.data);
    std::puts("ended");
    return 0;
  }
  return 2;
}

}  // namespace
}  // namespace jevons::cuda

int main(int argc, char** argv) { return argc == 2 ? jevons::cuda::Run(argv[1]) : 2; }
