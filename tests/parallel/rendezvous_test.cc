#include "parallel/rendezvous.h"

#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "parallel/gloo_communicator.h"
#include "parallel/socket.h"
#include "tests/parallel/free_address.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

using Offers = absl::StatusOr<std::vector<std::string>>;

// Each of `ranks` joins on a thread of its own and offers its rank and address.
std::vector<Offers> JoinAll(const std::vector<RendezvousOptions>& ranks) {
  std::vector<Offers> results(ranks.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < ranks.size(); ++i) {
    threads.emplace_back([&, i] {
      results[i] = Rendezvous(ranks[i], [&](const std::string& host) {
        return absl::StrCat("offer of ", ranks[i].info.rank, " at ", host);
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

class RendezvousTest : public testing::Test {
 protected:
  RendezvousOptions Rank(int32_t rank, int32_t world_size = 3) const {
    return {.info = {.rank = rank, .world_size = world_size},
            .leader = leader_,
            .fingerprint = "demo 1 --ranks 3",
            .timeout = absl::Seconds(30)};
  }
  RendezvousOptions Hasty(int32_t rank) const {
    RendezvousOptions options = Rank(rank);
    options.timeout = absl::Milliseconds(400);
    return options;
  }

  const std::string leader_ = FreeAddress();
};

TEST_F(RendezvousTest, EveryRankGetsAllOffersByRank) {
  const std::vector<std::string> expected = {"offer of 0 at 127.0.0.1", "offer of 1 at 127.0.0.1",
                                             "offer of 2 at 10.1.2.3"};
  RendezvousOptions with_host = Rank(2);
  with_host.listen_host = "10.1.2.3";
  for (const Offers& offers : JoinAll({with_host, Rank(0), Rank(1)})) {
    ASSERT_TRUE(offers.ok()) << offers.status();
    EXPECT_EQ(*offers, expected);
  }
}

TEST_F(RendezvousTest, TheLeaderMayComeLast) {
  std::vector<Offers> followers;
  std::thread early([&] { followers = JoinAll({Rank(1), Rank(2)}); });
  absl::SleepFor(absl::Milliseconds(300));
  const std::vector<Offers> leader = JoinAll({Rank(0)});
  early.join();
  EXPECT_TRUE(leader[0].ok()) << leader[0].status();
  for (const Offers& offers : followers) EXPECT_TRUE(offers.ok()) << offers.status();
}

TEST_F(RendezvousTest, RanksThatDoNotComeAreNamed) {
  RendezvousOptions patient = Rank(1);  // hears it from the leader, before its own time is up
  const auto results = JoinAll({Hasty(0), patient});
  for (const Offers& offers : results) {
    ExpectError(offers, absl::StatusCode::kDeadlineExceeded,
                {"rank 2 did not take part within 400ms", leader_, "3 ranks"});
  }
}

TEST_F(RendezvousTest, ALeaderThatIsNotThereIsNamed) {
  const absl::Time start = absl::Now();
  ExpectError(JoinAll({Hasty(2)})[0], absl::StatusCode::kDeadlineExceeded,
              {"rank 2", leader_, "400ms", "refused"});
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

TEST_F(RendezvousTest, ARankThatIsNotWantedAnyMoreDoesNotWaitForTheLeader) {
  RendezvousOptions options = Rank(1);
  options.timeout = absl::Minutes(5);
  const absl::Time start = absl::Now();
  options.cancelled = [start] { return absl::Now() > start + absl::Milliseconds(100); };
  ExpectError(JoinAll({options})[0].status(), absl::StatusCode::kCancelled, {"rank 1", leader_});
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
}

TEST_F(RendezvousTest, ALeaderThatSaysNothingIsNamed) {
  const auto silent = Socket::Listen(leader_);
  ASSERT_TRUE(silent.ok()) << silent.status();
  ExpectError(JoinAll({Hasty(2)})[0], absl::StatusCode::kDeadlineExceeded,
              {"rank 2", leader_, "400ms", "no answer"});
}

TEST_F(RendezvousTest, APortInUseIsUnavailable) {
  const auto holder = Socket::Listen(leader_);
  ASSERT_TRUE(holder.ok()) << holder.status();
  ExpectError(JoinAll({Rank(0)})[0], absl::StatusCode::kUnavailable, {leader_, "in use"});
}

TEST_F(RendezvousTest, ARankTakenTwiceIsAnErrorForAll) {
  for (const Offers& offers : JoinAll({Rank(0), Rank(1), Rank(1)})) {
    ExpectError(offers, absl::StatusCode::kAlreadyExists, {"two processes", "rank 1 of 3"});
  }
}

TEST_F(RendezvousTest, AnotherWorldSizeNamesBoth) {
  const auto results = JoinAll({Rank(0), Rank(1, 4)});
  for (const Offers& offers : results) {
    ExpectError(offers, absl::StatusCode::kFailedPrecondition,
                {"3 at rank 0", "4 at rank 1", "world size"});
  }
}

TEST_F(RendezvousTest, AnotherFingerprintNamesBothValuesAndRanks) {
  RendezvousOptions other = Rank(2);
  other.fingerprint = "demo 2 --ranks 3";
  for (const Offers& offers : JoinAll({Rank(0), other})) {
    ExpectError(offers, absl::StatusCode::kFailedPrecondition,
                {"rank 0 runs 'demo 1 --ranks 3'", "rank 2 runs 'demo 2 --ranks 3'"});
  }
}

TEST_F(RendezvousTest, StrangersDoNotHoldUpTheRanks) {
  std::vector<Offers> early;
  std::thread thread([&] { early = JoinAll({Rank(0), Rank(2)}); });
  const SteadyTime deadline = SteadyDeadline(absl::Seconds(30));
  const auto browser = Socket::Connect(leader_, deadline);
  ASSERT_TRUE(browser.ok()) << browser.status();
  EXPECT_TRUE(browser->WriteFrame("GET / HTTP/1.1", deadline).ok());
  const auto silent = Socket::Connect(leader_, deadline);
  ASSERT_TRUE(silent.ok()) << silent.status();
  const std::vector<Offers> late = JoinAll({Rank(1)});
  thread.join();
  EXPECT_TRUE(late[0].ok()) << late[0].status();
  for (const Offers& offers : early) EXPECT_TRUE(offers.ok()) << offers.status();
}

TEST_F(RendezvousTest, ARankThatWentAwayMayComeAgain) {
  std::vector<Offers> leader;
  std::thread thread([&] { leader = JoinAll({Rank(0)}); });
  ExpectError(JoinAll({Hasty(1)})[0], absl::StatusCode::kDeadlineExceeded, {"no answer"});
  const auto results = JoinAll({Rank(1), Rank(2)});
  thread.join();
  EXPECT_TRUE(leader[0].ok()) << leader[0].status();
  for (const Offers& offers : results) EXPECT_TRUE(offers.ok()) << offers.status();
}

TEST_F(RendezvousTest, BadOptionsNameTheValue) {
  ExpectError(JoinAll({Rank(3)})[0], absl::StatusCode::kInvalidArgument,
              {"rank 3", "world size 3"});
  RendezvousOptions no_port = Rank(1);
  no_port.leader = "somewhere";
  ExpectError(JoinAll({no_port})[0], absl::StatusCode::kInvalidArgument,
              {"HOST:PORT", "somewhere"});
  RendezvousOptions everywhere = Rank(0);
  everywhere.leader = absl::StrCat("0.0.0.0", leader_.substr(leader_.find(':')));
  ExpectError(JoinAll({everywhere})[0], absl::StatusCode::kInvalidArgument,
              {"listen_host", "0.0.0.0"});
}

TEST_F(RendezvousTest, AnAddressThatIsNotOfThisHostIsNamed) {
  RendezvousOptions options = Rank(0);
  options.listen_host = "192.0.2.1";  // reserved for examples
  ExpectError(CreateGlooCommunicator({.rendezvous = options}), absl::StatusCode::kUnavailable,
              {"192.0.2.1"});
}

}  // namespace
}  // namespace jevons
