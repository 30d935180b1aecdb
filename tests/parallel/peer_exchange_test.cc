// Exchanges that kernels carry out, over emulated devices that reach each other's memory.
#include <barrier>
#include <vector>

#include "cuda/graph_cache.h"
#include "tests/parallel/nccl_ranks.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using absl::StatusCode;
using emu::LaunchStep;

constexpr absl::Duration kShort = absl::Milliseconds(200);
const NcclOptions kKernels = {.exchange_by = ExchangeBy::kKernels};
const NcclOptions kShortKernels = {.timeout = kShort, .exchange_by = ExchangeBy::kKernels};

class PeerExchangeTest : public NcclRanksTest {};

// The rank's values to receive, in memory that the ranks share.
int32_t* Received(NcclRank& r) {
  const auto data = r.comm->ReceiveMemory(NcclRank::kValues * sizeof(int32_t));
  EXPECT_TRUE(data.ok()) << data.status();
  return static_cast<int32_t*>(data.ok() ? *data : nullptr);
}

std::vector<int32_t> Get(NcclRank& r, const int32_t* from, int64_t count) {
  std::vector<int32_t> values(count);
  EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(values.data(), from, count * sizeof(int32_t),
                                           cudaMemcpyDeviceToHost, r.stream));
  EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(r.stream));
  return values;
}

// One value from and to each rank, to `out`.
absl::Status Exchange(NcclRank& r, int32_t* out) {
  std::swap(r.out, out);
  const absl::Status status = r.Exchange();
  std::swap(r.out, out);
  return status;
}

TEST_F(PeerExchangeTest, IsReplayedWithTheDataOfTheReplayBetweenCallsOfNccl) {
  for (int seed = 0; seed < 10; ++seed) {
    emu::SetSeed(seed);
    RunNcclRanks(4, kKernels, [](NcclRank& r) {
      int32_t* const received = Received(r);
      cuda::GraphCache steps;
      // What arrives goes on over NCCL, and from there by kernels again.
      const auto step = [&]() -> absl::Status {
        EXPECT_CUDA(cudaSuccess, LaunchStep({r.in, 1, 1}, r.stream));
        RETURN_IF_ERROR(Exchange(r, received));
        EXPECT_CUDA(cudaSuccess, LaunchStep({received + 1, 3, 0}, r.stream));
        EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(r.in, received, 4 * sizeof(int32_t),
                                                 cudaMemcpyDeviceToDevice, r.stream));
        RETURN_IF_ERROR(r.Exchange());
        EXPECT_CUDA(cudaSuccess, cudaMemcpyAsync(r.in, r.out, 4 * sizeof(int32_t),
                                                 cudaMemcpyDeviceToDevice, r.stream));
        return Exchange(r, received);
      };
      for (int32_t run = 0; run < 5; ++run) {
        r.Set(r.SentInRun(run));
        const absl::Status status = steps.Run(1, step, r.stream);
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_TRUE(r.comm->Wait().ok());
        EXPECT_EQ(Get(r, received, 4), r.GotInRun(run));
      }
    });
  }
}

TEST_F(PeerExchangeTest, SizesThatDifferAreNamedByWhoSends) {
  RunNcclRanks(2, kKernels, [](NcclRank& r) {
    int32_t* const received = Received(r);
    const std::vector<int64_t> offsets = {0, 128};
    const std::vector<int64_t> sent = {8, r.info.rank == 0 ? 16 : 8};
    const std::vector<int64_t> expected = {8, 8};
    const absl::Status queued = r.comm->AllToAll({.send = r.in,
                                                  .send_offsets = offsets,
                                                  .send_bytes = sent,
                                                  .recv = received,
                                                  .recv_offsets = offsets,
                                                  .recv_bytes = expected});
    ASSERT_TRUE(queued.ok()) << queued;
    const absl::Status status = r.comm->Wait();
    if (r.info.rank == 0) {
      ExpectError(status, StatusCode::kInvalidArgument,
                  {"rank 0 of 2", "sends 16 bytes to rank 1, which expects 8"});
    } else {
      EXPECT_FALSE(status.ok());
    }
    EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(r.stream));
  });
}

TEST_F(PeerExchangeTest, ARankThatStaysAwayIsNamedAndTheStreamGoesOn) {
  std::barrier<> waited(4);
  RunNcclRanks(4, kShortKernels, [&](NcclRank& r) {
    int32_t* const received = Received(r);
    if (r.info.rank != 2) {
      EXPECT_TRUE(Exchange(r, received).ok());
      const absl::Status status = r.comm->Wait();
      // The first that gives up ends the wait of the others.
      EXPECT_FALSE(status.ok());
      EXPECT_NE(status.message().find("did not come: rank 2"), std::string::npos) << status;
      EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(r.stream));
    }
    waited.arrive_and_wait();
  });
}

// What one rank still stores when the memory of another is gone harms nobody.
TEST_F(PeerExchangeTest, AnAbortAtAnyTimeEndsTheExchangesOfAll) {
  for (int seed = 0; seed < 40; ++seed) {
    emu::SetSeed(seed);
    std::barrier<> ready(3);
    RunNcclRanks(3, kKernels, [&](NcclRank& r) {
      int32_t* const received = Received(r);
      ready.arrive_and_wait();
      absl::Status status;
      for (int i = 0; i < 10 && status.ok(); ++i) {
        if (r.info.rank == seed % 3 && i == seed / 3 % 10) r.comm->Abort("its machine burns");
        status = Exchange(r, received);
        if (status.ok() && i % 2 == 1) status = r.comm->Wait();
      }
      EXPECT_EQ(status.code(), StatusCode::kAborted) << status;
      EXPECT_CUDA(cudaSuccess, cudaStreamSynchronize(r.stream));
    });
  }
}

TEST_F(PeerExchangeTest, RowsWithoutAKeyDoNotTravel) {
  for (const int64_t width : {1, 2, 4, 6}) {
    SCOPED_TRACE(width);
    RunNcclRanks(2, kKernels, [&](NcclRank& r) {
      int32_t* const received = Received(r);
      constexpr int64_t kRows = 5;  // for each rank
      CUDA_OK(cudaMemsetAsync(received, 0, NcclRank::kValues * sizeof(int32_t), r.stream));
      std::vector<int32_t> values(kRows * 2 * width, 7 + r.info.rank);
      r.Set(values);
      const std::vector<int32_t> keys = {3, -1, 0, -1, 9, -1, -1, 5, 1, -1};
      CUDA_OK(cudaMemcpyAsync(r.out, keys.data(), keys.size() * sizeof(int32_t),
                              cudaMemcpyHostToDevice, r.stream));
      const int64_t row_bytes = width * static_cast<int64_t>(sizeof(int32_t));
      const std::vector<int64_t> offsets = {0, kRows * row_bytes};
      const std::vector<int64_t> bytes(2, kRows * row_bytes);
      ASSERT_TRUE(r.comm
                      ->AllToAll({.send = r.in,
                                  .send_offsets = offsets,
                                  .send_bytes = bytes,
                                  .recv = received,
                                  .recv_offsets = offsets,
                                  .recv_bytes = bytes,
                                  .row_keys = r.out,
                                  .row_bytes = row_bytes})
                      .ok());
      ASSERT_TRUE(r.comm->Wait().ok());
      std::vector<int32_t> expected;
      for (int32_t sender = 0; sender < 2; ++sender) {
        for (int64_t row = 0; row < kRows; ++row) {
          const bool travels = keys[r.info.rank * kRows + row] >= 0;
          expected.insert(expected.end(), width, travels ? 7 + sender : 0);
        }
      }
      EXPECT_EQ(Get(r, received, kRows * 2 * width), expected);
    });
  }
}

TEST_F(PeerExchangeTest, DevicesThatDoNotReachEachOtherAreRefused) {
  emu::LimitReach(2);
  RunNcclRanks(3, kKernels, [](NcclRank& r) {
    const absl::Status status = r.comm->ReceiveMemory(64).status();
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message().find("this one reaches 2 of 3"), std::string::npos) << status;
  });
}

TEST_F(PeerExchangeTest, MemoryIsGivenOnceAndOnlyWhereKernelsUseIt) {
  RunNcclRanks(2, {}, [](NcclRank& r) {
    const auto memory = r.comm->ReceiveMemory(64);
    ASSERT_TRUE(memory.ok());
    EXPECT_EQ(*memory, nullptr);
  });
  RunNcclRanks(1, kKernels, [](NcclRank& r) {
    EXPECT_NE(Received(r), nullptr);
    ExpectError(r.comm->ReceiveMemory(64).status(), StatusCode::kInvalidArgument,
                {"ReceiveMemory", "once"});
  });
}

TEST_F(PeerExchangeTest, WhatDoesNotFitIntoTheMemoryIsRefused) {
  RunNcclRanks(1, kKernels, [](NcclRank& r) {
    int32_t* const received = Received(r);
    const std::vector<int64_t> offsets = {4000};
    const std::vector<int64_t> bytes = {8};
    ExpectError(r.comm->AllToAll({.send = r.in,
                                  .send_offsets = std::vector<int64_t>{0},
                                  .send_bytes = bytes,
                                  .recv = received,
                                  .recv_offsets = offsets,
                                  .recv_bytes = bytes}),
                StatusCode::kInvalidArgument, {"expects 8 bytes at", "of the 4096 bytes"});
  });
}

}  // namespace
}  // namespace jevons
