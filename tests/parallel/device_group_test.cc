// What is particular to ranks that are threads with a device each. The contract that all communicators
// share is tested by the suite (nccl_groups.cc).
#include "parallel/device_group.h"

#include <atomic>
#include <barrier>
#include <functional>
#include <thread>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "parallel/gloo_communicator.h"
#include "tests/parallel/free_address.h"
#include "tests/parallel/nccl_ranks.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using absl::StatusCode;

constexpr absl::Duration kLong = absl::Seconds(60);

class DeviceGroupTest : public NcclRanksTest {
 protected:
  // A rank's stream and data; it joins on request.
  struct Rank {
    Rank(DeviceGroup& group, int32_t rank) : group(group), rank(rank) {
      EXPECT_CUDA(cudaSuccess, cudaSetDevice(rank));
      EXPECT_CUDA(cudaSuccess, cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
      EXPECT_CUDA(cudaSuccess, cudaMalloc(&data, 64));
    }
    ~Rank() {
      comm = nullptr;
      EXPECT_CUDA(cudaSuccess, cudaFree(data));
      EXPECT_CUDA(cudaSuccess, cudaStreamDestroy(stream));
    }
    Rank(const Rank&) = delete;
    Rank& operator=(const Rank&) = delete;

    absl::Status Join() {
      ASSIGN_OR_RETURN(comm, group.Join(rank, rank, stream));
      return absl::OkStatus();
    }
    absl::Status Exchange() { return comm->AllGather(data, 4, static_cast<char*>(data) + 16); }

    DeviceGroup& group;
    const int32_t rank;
    cudaStream_t stream = nullptr;
    void* data = nullptr;
    std::unique_ptr<Communicator> comm;
  };

  // Runs `body` for each of two ranks, on a thread of its own.
  void Run(const CommunicatorOptions& options, const std::function<void(Rank&)>& body) {
    DeviceGroup group(2, options);
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        Rank r(group, rank);
        body(r);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  // The same for two ranks that have come together.
  virtual void RunGroup(const std::function<void(Rank&)>& body) {
    Run({.timeout = kLong}, [&](Rank& r) {
      const absl::Status joined = r.Join();
      ASSERT_TRUE(joined.ok()) << joined;
      ASSERT_TRUE(r.comm->Barrier(kLong).ok());
      body(r);
    });
  }

  void AbortWhileADeviceWaits() {
    std::barrier<> done(2);
    RunGroup([&](Rank& r) {
      const absl::Cleanup together = [&] { done.arrive_and_wait(); };
      if (r.rank == 0) {
        ASSERT_TRUE(r.Exchange().ok());
        CUDA_OK(cudaStreamSynchronize(r.stream));
      } else {
        absl::SleepFor(absl::Milliseconds(20));
        r.comm->Abort("its machine burns");
      }
      ExpectError(r.Exchange(), StatusCode::kAborted, {"its machine burns"});
      ExpectError(r.comm->Barrier(kLong), StatusCode::kAborted, {"its machine burns"});
    });
  }

  // As a rank that is killed: it leaves no word.
  void LeaveWhileADeviceWaits() {
    RunGroup([](Rank& r) {
      if (r.rank == 1) return;
      ASSERT_TRUE(r.Exchange().ok());
      ExpectError(r.comm->Wait(), StatusCode::kAborted, {"rank 1 is gone"});
    });
  }
};

TEST_F(DeviceGroupTest, HostCallsWaitForNoDevice) {
  Run({.timeout = kLong}, [](Rank& r) {
    const absl::Status joined = r.Join();
    ASSERT_TRUE(joined.ok()) << joined;
    // Rank 0's device waits for an exchange that rank 1 begins only afterwards.
    if (r.rank == 0) {
      ASSERT_TRUE(r.Exchange().ok());
    }
    int64_t value = r.rank + 1;
    ASSERT_TRUE(r.comm->AllReduce(std::span(&value, 1), ReduceOp::kSum).ok());
    EXPECT_EQ(value, 3);
    if (r.rank == 0) {
      EXPECT_CUDA(cudaErrorNotReady, cudaStreamQuery(r.stream));
    }
    ASSERT_TRUE(r.comm->Barrier(kLong).ok());
    if (r.rank == 1) {
      ASSERT_TRUE(r.Exchange().ok());
    }
    const absl::Status done = r.comm->Wait();
    EXPECT_TRUE(done.ok()) << done;
    EXPECT_TRUE(r.comm->Barrier(kLong).ok());
  });
}

TEST_F(DeviceGroupTest, AnAbortFreesARankThatWaitsForItsDevice) { AbortWhileADeviceWaits(); }

TEST_F(DeviceGroupTest, ARankThatIsGoneEndsAWaitForTheDevice) { LeaveWhileADeviceWaits(); }

#ifndef JEVONS_TEST_THREADS_ALONE
// Ranks as processes, which hear of each other over Gloo.
class GlooDeviceTest : public DeviceGroupTest {
 protected:
  void RunGroup(const std::function<void(Rank&)>& body) override {
    const std::string leader = FreeAddress();
    Run({}, [&](Rank& r) {
      auto host = CreateGlooCommunicator(
          {.rendezvous = {.info = {.rank = r.rank, .world_size = 2}, .leader = leader},
           .communicator = {.timeout = kLong}});
      ASSERT_TRUE(host.ok()) << host.status();
      auto made = CreateNcclCommunicator(*std::move(host),
                                         {.device = r.rank, .stream = r.stream, .timeout = kLong});
      ASSERT_TRUE(made.ok()) << made.status();
      r.comm = *std::move(made);
      ASSERT_TRUE(r.comm->Barrier(kLong).ok());
      body(r);
    });
  }
};

TEST_F(GlooDeviceTest, AnAbortElsewhereFreesARankThatWaitsForItsDevice) {
  AbortWhileADeviceWaits();
}

TEST_F(GlooDeviceTest, ARankThatIsGoneEndsAWaitForTheDevice) { LeaveWhileADeviceWaits(); }
#endif

// As a step waits for its tokens.
TEST_F(DeviceGroupTest, AWaitForOneThingEndsWithItOrWithTheErrorOfAnotherRank) {
  std::barrier<> done(2);
  Run({.timeout = kLong}, [&](Rank& r) {
    const absl::Cleanup together = [&] { done.arrive_and_wait(); };
    ASSERT_TRUE(r.Join().ok());
    ASSERT_TRUE(r.Exchange().ok());
    int asked = 0;
    EXPECT_TRUE(r.comm->WaitUntil([&] { return ++asked == 3; }).ok());
    EXPECT_EQ(asked, 3);
    // The error of one ends every call of the other.
    ASSERT_TRUE(r.comm->Barrier(kLong).ok());
    if (r.rank == 1) {
      ExpectError(r.comm->Broadcast(r.data, -5, 0), StatusCode::kInvalidArgument, {"-5"});
    } else {
      ExpectError(r.comm->WaitUntil([] { return false; }), StatusCode::kAborted, {"-5"});
    }
  });
}

TEST_F(DeviceGroupTest, AWaitForOneThingHasADeadlineAndTakesItsErrors) {
  std::barrier<> done(2);
  Run({.timeout = absl::Milliseconds(200)}, [&](Rank& r) {
    const absl::Cleanup together = [&] { done.arrive_and_wait(); };
    ASSERT_TRUE(r.Join().ok());
    ASSERT_TRUE(r.comm->Barrier(kLong).ok());
    if (r.rank == 0) {
      ExpectError(r.comm->WaitUntil([] { return false; }), StatusCode::kDeadlineExceeded,
                  {"Wait", "rank 0 of 2", "200ms"});
    }
  });
  RunGroup([&](Rank& r) {
    const absl::Cleanup together = [&] { done.arrive_and_wait(); };
    if (r.rank == 0) {
      const absl::Status lost = absl::InternalError("the copy failed");
      EXPECT_EQ(r.comm->WaitUntil([&]() -> absl::StatusOr<bool> { return lost; }), lost);
    }
  });
}

TEST_F(DeviceGroupTest, ARankThatDoesNotComeEndsTheCreationOfTheOthers) {
  Run({}, [](Rank& r) {
    if (r.rank == 1) {
      absl::SleepFor(absl::Milliseconds(20));
      r.group.Abort("no memory for rank 1");
    }
    ExpectError(r.Join(), StatusCode::kAborted, {"no memory for rank 1"});
  });
}

TEST_F(DeviceGroupTest, ARankOutOfRangeIsRefused) {
  DeviceGroup group(2);
  Rank rank(group, 3);
  ExpectError(rank.Join(), StatusCode::kInvalidArgument, {"3"});
}

}  // namespace
}  // namespace jevons
