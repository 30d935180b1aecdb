// The kernels of peer_kernels.h.
//
// A decode step moves kilobytes to each peer: latency decides, that of two flags over NVLink, one each
// way, and of three launches. A prompt moves megabytes: the links decide, which a few dozen blocks fill.
// Stores go out and come back never, so a warp has as many under way as it issues.
//
// Order between devices. The bytes of the second kernel are stored before the third begins, which
// releases the flag; the peer acquires it. A place is free when its kernel releases `ready`: what read it
// before was queued before. A slot is written for exchange n + 1 only by a rank that has the bytes of n
// from the one that reads it, which had then read the slot.
//
// A kernel that begins after the stop touches neither another device, whose memory may be gone, nor the
// window, which the communicator takes along.
//
// Barrier, of the first kernel: all have read the number of the exchange before it is raised.
#include "parallel/peer_kernels.h"

#include <nccl.h>
#include <nccl_device.h>

#include <algorithm>

#include "cuda/device/launch.h"
#include "cuda/device/peer.h"

namespace jevons {
namespace {

using device::Waited;

constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // loads of a thread before it stores
constexpr int64_t kBytesPerBlock = 32 * 1024;
constexpr int64_t kMostBlocks = 64;  // of all peers: enough to fill the links

__global__ void __launch_bounds__(128) FindPeersKernel(ncclWindow_t window, int num_ranks,
                                                       PeerState* state, const PeerReport* report) {
  const int peer = device::ThreadIdx();
  if (peer >= num_ranks || device::LoadSystem(&report->stop) != 0) return;
  state->shared[peer] = static_cast<char*>(ncclGetPeerPointer(window, 0, peer));
}

// False: told to stop.
__device__ __forceinline__ bool WaitForPeer(const PeerExchangeParams& p, int peer,
                                            const uint64_t* flag, uint64_t number) {
  bool is_long = false;
  for (;;) {
    const Waited waited = device::WaitAtLeastSystem(flag, number, &p.report->stop);
    if (waited == Waited::kLong && is_long) continue;
    if (waited == Waited::kLong) {
      device::StorePeer(&p.report->missing[peer], uint32_t{1});
      is_long = true;
      continue;
    }
    if (waited == Waited::kCome && is_long) {
      device::StorePeer(&p.report->missing[peer], uint32_t{0});
    }
    return waited == Waited::kCome;
  }
}

__device__ __forceinline__ PeerSlot* SlotAt(const PeerExchangeParams& p, int peer) {
  return reinterpret_cast<PeerSlot*>(p.state->shared[peer]) + p.rank;
}

__device__ __forceinline__ void ReportWrong(const PeerExchangeParams& p, int peer,
                                            uint64_t expected) {
  device::StorePeer(&p.report->sent, static_cast<uint64_t>(p.parts[peer].send_bytes));
  device::StorePeer(&p.report->expected, expected);
  device::StorePeer(&p.report->wrong, static_cast<uint32_t>(peer + 1));
  device::StorePeer(&p.report->stop, uint32_t{1});
}

__global__ void __launch_bounds__(128)
    PeerReadyKernel(const __grid_constant__ PeerExchangeParams p) {
  const int peer = device::ThreadIdx();
  const uint64_t number = p.state->number + 1;
  device::SyncThreads();
  if (peer == 0) p.state->number = number;
  if (peer >= p.num_ranks) return;
  p.state->place[peer] = nullptr;
  if (device::LoadSystem(&p.report->stop) != 0) return;
  PeerSlot* const theirs = SlotAt(p, peer);
  device::StorePeer(&theirs->offset, static_cast<uint64_t>(p.parts[peer].recv_offset));
  device::StorePeer(&theirs->bytes, static_cast<uint64_t>(p.parts[peer].recv_bytes));
  device::StoreReleaseSystem(&theirs->ready, number);
  const PeerSlot& mine = p.slots[peer];
  if (!WaitForPeer(p, peer, &mine.ready, number)) return;
  if (mine.bytes != static_cast<uint64_t>(p.parts[peer].send_bytes)) {
    return ReportWrong(p, peer, mine.bytes);
  }
  p.state->place[peer] = p.state->shared[peer] + mine.offset;
}

// The part of a copy that falls to one of `stride` threads.
template <typename T>
__device__ __forceinline__ void StoreSpan(char* to, const char* from, int64_t bytes, int64_t thread,
                                          int64_t stride) {
  const T* const source = reinterpret_cast<const T*>(from);
  const int64_t count = bytes / static_cast<int64_t>(sizeof(T));
  for (int64_t i = thread; i < count; i += kPerThread * stride) {
    T value[kPerThread];
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (i + j * stride < count) value[j] = source[i + j * stride];
    }
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (i + j * stride < count) device::StorePeer(to + (i + j * stride) * sizeof(T), value[j]);
    }
  }
}

// What falls to this block: threads share all bytes, or warps share the rows.
template <typename T>
__device__ __forceinline__ void StorePart(const PeerExchangeParams& p, char* to,
                                          const PeerExchangeParams::Part& part) {
  const char* const from = p.send + part.send_offset;
  const int64_t thread = static_cast<int64_t>(device::BlockIdxX()) * kThreads + device::ThreadIdx();
  const int64_t num_threads = static_cast<int64_t>(device::GridDimX()) * kThreads;
  if (p.row_keys == nullptr) return StoreSpan<T>(to, from, part.send_bytes, thread, num_threads);
  const int32_t* const keys = p.row_keys + part.send_offset / p.row_bytes;
  const int64_t num_rows = part.send_bytes / p.row_bytes;
  for (int64_t row = thread / 32; row < num_rows; row += num_threads / 32) {
    if (keys[row] < 0) continue;
    const int64_t offset = row * p.row_bytes;
    StoreSpan<T>(to + offset, from + offset, p.row_bytes, device::LaneIdx(), 32);
  }
}

__global__ void __launch_bounds__(kThreads)
    PeerStoreKernel(const __grid_constant__ PeerExchangeParams p) {
  const int peer = device::BlockIdxY();
  char* const to = p.state->place[peer];
  if (to == nullptr) return;
  const PeerExchangeParams::Part& part = p.parts[peer];
  const uint64_t alignment = reinterpret_cast<uint64_t>(to) |
                             reinterpret_cast<uint64_t>(p.send + part.send_offset) |
                             part.send_bytes | p.row_bytes;
  if (alignment % 16 == 0) {
    StorePart<uint4>(p, to, part);
  } else if (alignment % 8 == 0) {
    StorePart<uint64_t>(p, to, part);
  } else if (alignment % 4 == 0) {
    StorePart<uint32_t>(p, to, part);
  } else {
    StorePart<uint8_t>(p, to, part);
  }
}

__global__ void __launch_bounds__(128)
    PeerArrivedKernel(const __grid_constant__ PeerExchangeParams p) {
  const int peer = device::ThreadIdx();
  if (peer >= p.num_ranks) return;
  const uint64_t number = p.state->number;
  if (p.state->place[peer] == nullptr) return;
  device::StoreReleaseSystem(&SlotAt(p, peer)->arrived, number);
  WaitForPeer(p, peer, &p.slots[peer].arrived, number);
}

cuda::LaunchShape ShapeOf(int32_t num_ranks) {
  cuda::LaunchShape shape;
  shape.block = (num_ranks + 31) / 32 * 32;
  return shape;
}

cudaStream_t ToCuda(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

int LaunchFindPeers(void* window, int32_t num_ranks, PeerState* state, const PeerReport* report,
                    void* stream) {
  return cuda::Launch(&FindPeersKernel, ShapeOf(num_ranks), ToCuda(stream),
                      static_cast<ncclWindow_t>(window), num_ranks, state, report);
}

int LaunchPeerExchange(const PeerExchangeParams& p, void* stream) {
  const cuda::LaunchShape meeting = ShapeOf(p.num_ranks);
  cudaError_t error = cuda::Launch(&PeerReadyKernel, meeting, ToCuda(stream), p);
  if (error != cudaSuccess) return error;
  int64_t most = 0;
  for (int32_t i = 0; i < p.num_ranks; ++i) most = std::max(most, p.parts[i].send_bytes);
  const int64_t blocks = std::min((most + kBytesPerBlock - 1) / kBytesPerBlock,
                                  std::max<int64_t>(kMostBlocks / p.num_ranks, 1));
  cuda::LaunchShape store;
  store.block = kThreads;
  store.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.num_ranks));
  error = cuda::Launch(&PeerStoreKernel, store, ToCuda(stream), p);
  if (error != cudaSuccess) return error;
  return cuda::Launch(&PeerArrivedKernel, meeting, ToCuda(stream), p);
}

}  // namespace jevons
