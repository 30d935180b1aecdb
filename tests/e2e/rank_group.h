// Groups of ranks as processes of the real binary.
#pragma once

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "gtest/gtest.h"
#include "tests/e2e/demo_server.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/proc_tree.h"
#include "tests/support/process.h"

namespace jevons {

// Ends a test that hangs; no test counts on it.
inline constexpr absl::Duration kLongest = absl::Minutes(3);
// About a second is what is asked for; a loaded machine is given more.
inline constexpr absl::Duration kSoon = absl::Seconds(15);

// A folder with a small random model that can go on for long.
class TinyModelFolder {
 public:
  explicit TinyModelFolder(uint64_t seed = 5) {
    WriteRandomModel(folder_.path(),
                     TinyConfigJson("deepseek_v3", {{"max_position_embeddings", 60000}}), seed);
  }
  const std::string& path() const { return folder_.path(); }

 private:
  TempFolder folder_;
};

using Arguments = std::vector<std::string>;

inline Arguments Join(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Of `jevons serve` with transport processes. A lost rank stays lost unless `more` says otherwise.
inline Arguments ServeArguments(const std::string& model, int num_ranks, Arguments more = {}) {
  constexpr char kRestart[] = "--restart-seconds";
  if (std::find(more.begin(), more.end(), kRestart) == more.end()) {
    more = Join(more, {kRestart, "0"});
  }
  return Join({JEVONS_BINARY, "serve", "--model", model, "--listen", "127.0.0.1:0", "--backend",
               "cpu", "--threads", "1", "--max-num-seqs", "8", "--ranks", absl::StrCat(num_ranks),
               "--transport", "processes"},
              more);
}

// A server that is ready.
class RankServer {
 public:
  explicit RankServer(const Arguments& argv) : process_(Process::Start(argv)) {
    ready_ = process_->ReadLine(kLongest);
    const size_t begin = ready_.find("listen=");
    EXPECT_NE(begin, std::string::npos) << "not ready: " << ready_;
    if (begin == std::string::npos) return;
    const size_t start = begin + 7;
    address_ = ready_.substr(start, ready_.find(' ', start) - start);
    client_ = Client::Connect(address_);
    ranks_ = RankChildrenOf(process_->pid());
  }

  bool ok() const { return client_ != nullptr; }
  const std::string& ready() const { return ready_; }
  const std::string& address() const { return address_; }
  Process& process() { return *process_; }
  Client& client() { return *client_; }
  // The processes of ranks that it started, by rank.
  const std::map<int, pid_t>& ranks() const { return ranks_; }
  // No process of a rank is left.
  bool RanksGone() const {
    return WaitFor([this] {
      for (const auto& [rank, pid] : ranks_) {
        if (ProcRuns(pid)) return false;
      }
      return true;
    });
  }

 private:
  std::unique_ptr<Process> process_;
  std::string ready_;
  std::string address_;
  std::unique_ptr<Client> client_;
  std::map<int, pid_t> ranks_;
};

inline v1::GenerateRequest TinyRequest(int number, int max_tokens) {
  v1::GenerateRequest out;
  for (int i = 0; i < 3 + number * 5; ++i) {
    out.mutable_token_ids()->add_ids(2 + (number * 31 + i * 7) % 60);
  }
  out.set_max_tokens(max_tokens);
  out.set_ignore_eos(true);
  out.set_return_token_ids(true);
  out.set_logprobs(3);
  out.set_prompt_logprobs(1);
  out.mutable_sampling()->set_temperature(number % 2 == 0 ? 0.0f : 1.0f);
  out.mutable_sampling()->set_seed(40 + number);
  return out;
}

// All at the same time.
inline std::vector<Generation> GenerateTogether(Client& client,
                                                const std::vector<v1::GenerateRequest>& requests) {
  std::vector<Generation> out(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] { out[i] = Generate(client, requests[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  return out;
}

// Endless requests to every rank of a group.
class EndlessCalls {
 public:
  EndlessCalls(Client& client, int count) : handles_(count), got_(count) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([&, i] {
        bool first = true;
        got_[i] = client.Generate(TinyRequest(i, 50000),
                                  [&](const v1::GenerateResponse& message) {
                                    if (message.token_ids_size() == 0 || !first) return;
                                    first = false;
                                    ++num_started_;
                                  },
                                  {.handle = &handles_[i]});
      });
    }
  }
  ~EndlessCalls() {
    for (CallHandle& handle : handles_) handle.Cancel();
    Join();
  }

  bool AllStarted() {
    return WaitFor([this] { return num_started_ == static_cast<int>(got_.size()); }, kLongest);
  }
  const std::vector<absl::Status>& Join() {
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
    return got_;
  }

 private:
  std::vector<CallHandle> handles_;
  std::vector<absl::Status> got_;
  std::atomic<int> num_started_ = 0;
  std::vector<std::thread> threads_;
};

inline void ExpectSameGeneration(const Generation& got, const Generation& want) {
  const auto bytes = [](const std::vector<v1::Logprobs>& logprobs) {
    std::string out;
    for (const v1::Logprobs& entry : logprobs) out += entry.SerializeAsString();
    return out;
  };
  EXPECT_TRUE(got.status.ok()) << got.status;
  EXPECT_EQ(got.token_ids, want.token_ids);
  EXPECT_EQ(bytes(got.logprobs), bytes(want.logprobs));
  EXPECT_EQ(bytes(got.prompt_logprobs), bytes(want.prompt_logprobs));
  EXPECT_EQ(got.thinking, want.thinking);
  EXPECT_EQ(got.answer, want.answer);
  EXPECT_EQ(got.finish_reason, want.finish_reason);
  EXPECT_EQ(got.usage.SerializeAsString(), want.usage.SerializeAsString());
}

}  // namespace jevons
