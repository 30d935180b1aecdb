// Ranks over the emulated NCCL for tests of what is particular to it: threads, each with a device.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <utility>
#include <thread>
#include <vector>

#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/cuda_emu/nccl_plan.h"
#include "tests/cuda_emu/tests/emu_test.h"

namespace jevons {

// Every test ends with nothing of the runtime or of NCCL left.
class NcclRanksTest : public emu::EmuTest {
 protected:
  static constexpr int32_t kMaxRanks = 8;

  NcclRanksTest() {
    emu::SetDevice({.count = kMaxRanks});
    emu::ResetNccl();
  }
  ~NcclRanksTest() override {
    EXPECT_EQ(emu::OutstandingCommunicators(), 0);
    emu::ResetNccl();
  }
};

// What a rank has: a stream, two arrays of `kValues` on its device, and its communicator.
struct NcclRank {
  static constexpr int64_t kValues = 64;

  NcclRank(std::unique_ptr<Communicator> host, NcclOptions options) : info(host->info()) {
    EXPECT_CUDA(cudaSuccess, cudaSetDevice(info.rank));
    EXPECT_CUDA(cudaSuccess, cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (int32_t** data : {&in, &out}) {
      EXPECT_CUDA(cudaSuccess,
                  cudaMalloc(reinterpret_cast<void**>(data), kValues * sizeof(int32_t)));
    }
    options.device = info.rank;
    options.stream = stream;
    auto made = CreateNcclCommunicator(std::move(host), options);
    created = made.status();
    if (made.ok()) comm = *std::move(made);
  }
  ~NcclRank() {
    comm = nullptr;
    EXPECT_CUDA(cudaSuccess, cudaFree(in));
    EXPECT_CUDA(cudaSuccess, cudaFree(out));
    EXPECT_CUDA(cudaSuccess, cudaStreamDestroy(stream));
  }
  NcclRank(const NcclRank&) = delete;
  NcclRank& operator=(const NcclRank&) = delete;

  void Set(const std::vector<int32_t>& values) {
    EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(in, values.data(), values.size() * sizeof(int32_t),
                                             cudaMemcpyHostToDevice, stream));
    EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
  }
  std::vector<int32_t> Get(int64_t count) {
    std::vector<int32_t> values(count);
    EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(values.data(), out, count * sizeof(int32_t),
                                             cudaMemcpyDeviceToHost, stream));
    EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(stream));
    return values;
  }
  // What a rank sends in a recorded step that adds 1 to in[0], exchanges, and triples out[1]; and what
  // it then has.
  std::vector<int32_t> SentInRun(int32_t run) const {
    std::vector<int32_t> values;
    for (int32_t to = 0; to < info.world_size; ++to) {
      values.push_back(1000 * run + 10 * info.rank + to);
    }
    return values;
  }
  std::vector<int32_t> GotInRun(int32_t run) const {
    std::vector<int32_t> values;
    for (int32_t from = 0; from < info.world_size; ++from) {
      const int32_t sent = 1000 * run + 10 * from + info.rank + (info.rank == 0 ? 1 : 0);
      values.push_back(from == 1 ? 3 * sent : sent);
    }
    return values;
  }
  // One value to and from each rank: out[s] = in[this rank] at s. Where `meanwhile` is given, in halves
  // with it between them.
  absl::Status Exchange(const std::function<void()>& meanwhile = {}) {
    std::vector<int64_t> offsets(info.world_size);
    for (int32_t peer = 0; peer < info.world_size; ++peer) offsets[peer] = peer * sizeof(int32_t);
    const std::vector<int64_t> bytes(info.world_size, sizeof(int32_t));
    const AllToAllArgs args = {.send = in,
                               .send_offsets = offsets,
                               .send_bytes = bytes,
                               .recv = out,
                               .recv_offsets = offsets,
                               .recv_bytes = bytes};
    if (!meanwhile) return comm->AllToAll(args);
    RETURN_IF_ERROR(comm->StartAllToAll(args));
    meanwhile();
    return comm->FinishAllToAll();
  }

  const RankInfo info;
  cudaStream_t stream = nullptr;
  int32_t* in = nullptr;
  int32_t* out = nullptr;
  absl::Status created;
  std::unique_ptr<Communicator> comm;  // null where `created` is an error
};

// Runs `body` for each rank on a thread of its own.
inline void RunNcclRanks(int32_t world_size, const NcclOptions& options,
                         const std::function<void(NcclRank&)>& body) {
  ThreadGroup group(world_size, {.timeout = options.timeout});
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      NcclRank r(*group.Join(rank), options);
      body(r);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace jevons
