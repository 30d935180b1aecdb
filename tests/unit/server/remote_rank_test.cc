#include "server/remote_rank.h"

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace jevons {
namespace {

using State = RemoteRank::State;

// The statuses that streams were closed with outlive them.
class Way : public RankSender {
 public:
  explicit Way(std::vector<absl::Status>* closed) : closed_(closed) {}
  void Send(wire::ToRank) override {}
  void Close(const absl::Status& status) override { closed_->push_back(status); }

 private:
  std::vector<absl::Status>* const closed_;
};

// A stream holds its rank: a rank that held the stream beyond its end would hold both for ever.
TEST(RemoteRankTest, LetsGoOfItsStreamWhenItHasStoppedOrIsLost) {
  const absl::Status lost = absl::UnavailableError("its process is gone");
  const struct {
    std::function<void(RemoteRank&)> end;
    std::vector<absl::Status> closed;
  } cases[] = {
      {[](RemoteRank& rank) { rank.Advance(State::kStopped); }, {absl::OkStatus()}},
      {[&](RemoteRank& rank) { rank.Lose(lost); }, {lost}},
      {[](RemoteRank& rank) { rank.Leave(); }, {}},
  };
  for (const auto& [end, want] : cases) {
    std::vector<absl::Status> closed;
    RemoteRank rank(1);
    auto way = std::make_shared<Way>(&closed);
    const std::weak_ptr<Way> held = way;
    rank.Attach(std::move(way));
    rank.Advance(State::kLoaded);
    EXPECT_FALSE(held.expired());
    end(rank);
    EXPECT_TRUE(held.expired());
    EXPECT_EQ(closed, want);
    rank.Poke();
  }
}

}  // namespace
}  // namespace jevons
