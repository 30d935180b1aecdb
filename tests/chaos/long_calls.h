// Streams that go on until something ends them.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/e2e/rank_group.h"

namespace jevons {

// One thread each. Requests are TinyRequest(0), TinyRequest(1), ... without an end.
class LongCalls {
 public:
  LongCalls(const std::string& address, int count)
      : client_(Client::Connect(address)), calls_(count) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this, i] {
        Call& call = calls_[i];
        call.got.status = client_->Generate(TinyRequest(i, 50000),
                                            [&](const v1::GenerateResponse& message) {
                                              call.got.Add(message);
                                              ++call.num_messages;
                                            },
                                            {.handle = &call.handle});
        call.ended = true;
      });
    }
  }
  ~LongCalls() { Join(); }

  int count() const { return static_cast<int>(calls_.size()); }

  bool AllStarted() const {
    return WaitFor(
        [this] { return Every([](const Call& call) { return call.num_messages > 1; }); });
  }
  // How long until each has had two messages more: the first may have been on its way.
  absl::Duration UntilAllGoOn(absl::Duration limit) const {
    const absl::Time start = absl::Now();
    std::vector<int> before;
    for (const Call& call : calls_) before.push_back(call.num_messages);
    const auto all_go_on = [&] {
      for (size_t i = 0; i < calls_.size(); ++i) {
        if (calls_[i].num_messages < before[i] + 2) return false;
      }
      return true;
    };
    return WaitFor(all_go_on, limit) ? absl::Now() - start : absl::InfiniteDuration();
  }
  bool AllEnded(absl::Duration limit) const {
    return WaitFor([this] { return Every([](const Call& call) { return call.ended.load(); }); },
                   limit);
  }
  // Cancels those that still run.
  std::vector<absl::Status> Join() {
    std::vector<absl::Status> out;
    for (Call& call : calls_) call.handle.Cancel();
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
    for (const Call& call : calls_) out.push_back(call.got.status);
    return out;
  }
  // What each got; after Join.
  const Generation& got(int i) const { return calls_[i].got; }

 private:
  struct Call {
    CallHandle handle;
    Generation got;
    std::atomic<int> num_messages = 0;
    std::atomic<bool> ended = false;
  };
  template <typename Predicate>
  bool Every(Predicate predicate) const {
    return std::all_of(calls_.begin(), calls_.end(), predicate);
  }

  const std::unique_ptr<Client> client_;
  std::deque<Call> calls_;
  std::vector<std::thread> threads_;
};

}  // namespace jevons
