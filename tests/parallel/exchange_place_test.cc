// What a rank over Gloo tells of its waits while they last, and after they were in vain.
#include <optional>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/gloo_communicator.h"
#include "parallel/unreached.h"
#include "tests/parallel/free_address.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

using testing::AnyOf;
using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr absl::Duration kLong = absl::Seconds(60);

// One for each rank.
std::vector<std::unique_ptr<Communicator>> MakeGroup(int32_t world_size, absl::Duration timeout) {
  const std::string leader = FreeAddress();
  std::vector<std::unique_ptr<Communicator>> out(world_size);
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      auto member =
          CreateGlooCommunicator({.rendezvous = {.info = {.rank = rank, .world_size = world_size},
                                                 .leader = leader,
                                                 .timeout = kLong},
                                  .communicator = {.timeout = timeout}});
      EXPECT_TRUE(member.ok()) << member.status();
      if (member.ok()) out[rank] = *std::move(member);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return out;
}

TEST(ExchangePlaceTest, SaysForWhomARankWaitsAndWhichOneIsFurther) {
  const auto group = MakeGroup(2, kLong);
  std::thread early([&] { EXPECT_TRUE(group[0]->Barrier(kLong).ok()); });
  ASSERT_TRUE(WaitFor([&] { return group[0]->place().waits_for == 1; }));
  EXPECT_EQ(group[1]->place().waits_for, -1);
  EXPECT_GT(group[0]->place().position, group[1]->place().position);
  EXPECT_FALSE(group[0]->place().behind_rows);
  EXPECT_TRUE(group[1]->Barrier(kLong).ok());
  early.join();
  EXPECT_EQ(group[0]->place().waits_for, -1);
  EXPECT_EQ(group[0]->place().position, group[1]->place().position);
}

TEST(UnreachedTest, ARankThatStaysAwayIsNamedByThoseThatHaveMissedItThemselves) {
  const auto group = MakeGroup(3, absl::Milliseconds(300));
  std::vector<std::vector<int32_t>> unreached(2);
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      int64_t value = 1;
      const absl::Status status = group[rank]->AllReduce(std::span(&value, 1), ReduceOp::kSum);
      EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
      unreached[rank] = UnreachedRanks(status);
      EXPECT_EQ(UnreachedRanks(group[rank]->Wait()), unreached[rank]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(unreached, Contains(ElementsAre(2)));
  // The other one may have been told.
  EXPECT_THAT(unreached, Each(AnyOf(ElementsAre(2), IsEmpty())));
}

}  // namespace
}  // namespace jevons
