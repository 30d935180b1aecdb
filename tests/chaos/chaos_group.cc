#include "tests/chaos/chaos_group.h"

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/support/proc_tree.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

constexpr absl::Duration kStartTime = absl::Minutes(2);
// A rank that was lost finds that out and ends.
constexpr absl::Duration kLostTime = absl::Seconds(20);
constexpr int kLeaderPort = 50052;
// Threads that a library keeps for a while.
constexpr int kMoreThreads = 4;

using Arguments = std::vector<std::string>;

// A shell that becomes the program, so that the process is the same.
Arguments WithLog(const Arguments& argv, const std::string& log) {
  if (log.empty()) return argv;
  Arguments out = {"/bin/sh", "-c", R"(log=$1; shift; exec "$@" 2>>"$log")", "sh", log};
  out.insert(out.end(), argv.begin(), argv.end());
  return out;
}

Arguments Join(Arguments a, const Arguments& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

int NumSockets(pid_t pid) {
  int count = 0;
  std::error_code ignored;
  for (const auto& fd :
       std::filesystem::directory_iterator(absl::StrCat("/proc/", pid, "/fd"), ignored)) {
    const std::string target = std::filesystem::read_symlink(fd.path(), ignored).string();
    count += absl::StartsWith(target, "socket:") ? 1 : 0;
  }
  return count;
}

int NumThreads(pid_t pid) {
  const std::vector<std::string> fields = ProcStat(pid);
  int32_t count = 0;
  return fields.size() > 17 && absl::SimpleAtoi(fields[17], &count) ? count : 0;
}

std::string AddressIn(const std::string& ready) {
  const size_t at = ready.find("listen=");
  if (at == std::string::npos) return "";
  return ready.substr(at + 7, ready.find(' ', at) - at - 7);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChaosGroup>> ChaosGroup::Start(const ChaosGroupOptions& options) {
  std::unique_ptr<ChaosGroup> out(new ChaosGroup);
  RETURN_IF_ERROR(out->Launch(options));
  return out;
}

absl::Status ChaosGroup::Launch(const ChaosGroupOptions& options) {
  const auto start = [&](int rank, const Arguments& more) {
    const Arguments argv = WithLog(Join(options.serve, more), options.log);
    return options.lab == nullptr ? Process::Start(argv) : options.lab->Start(rank, argv);
  };
  if (options.lab == nullptr) {
    ranks_[0].process = start(0, {"--listen", "127.0.0.1:0"});
  } else {
    const std::string host = NetworkLab::Address(0);
    const std::string leader = absl::StrCat(host, ":", kLeaderPort);
    for (int r = options.num_ranks - 1; r >= 0; --r) {
      options.lab->SetHost(r, {});
      ranks_[r].process =
          start(r, {"--listen", host + ":0", "--rank", absl::StrCat(r), "--leader", leader});
    }
  }
  address_ = AddressIn(ranks_[0].process->ReadLine(kStartTime));
  if (address_.empty()) return absl::UnavailableError("the group did not become ready");
  client_ = Client::Connect(address_);
  for (const auto& [rank, pid] : RankChildrenOf(ranks_[0].process->pid())) ranks_[rank].pid = pid;
  for (auto& [number, rank] : ranks_) {
    if (rank.process != nullptr) rank.pid = rank.process->pid();
    rank.sockets = NumSockets(rank.pid);
    rank.threads = NumThreads(rank.pid);
    members_.push_back(number);
  }
  if (static_cast<int>(members_.size()) == options.num_ranks) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(members_.size(), " processes for ", options.num_ranks, " ranks"));
}

ChaosGroup::~ChaosGroup() {
  for (const auto& [number, rank] : ranks_) {
    if (rank.pid > 0 && Runs(number)) kill(rank.pid, SIGKILL);
  }
}

bool ChaosGroup::Runs(int rank) const { return ProcRuns(ranks_.at(rank).pid); }

void ChaosGroup::Signal(int rank, int number) const { kill(ranks_.at(rank).pid, number); }

void ChaosGroup::ExpectLoss(int rank) {
  ranks_.at(rank).lost = absl::Now();
  members_.erase(std::remove(members_.begin(), members_.end(), rank), members_.end());
}

void ChaosGroup::TakeBack() {
  const auto status = client_->GetStatus();
  if (whole() || !status.ok()) return;
  for (const auto& [number, pid] : RankChildrenOf(ranks_.at(0).pid)) {
    Rank& rank = ranks_.at(number);
    const bool is_another = rank.lost != absl::InfiniteFuture() && pid != rank.pid;
    if (!is_another || !status->ranks(number).lost().empty()) continue;
    rank.pid = pid;
    rank.lost = absl::InfiniteFuture();
    members_.insert(std::lower_bound(members_.begin(), members_.end(), number), number);
  }
}

std::string ChaosGroup::CheckProcesses() const {
  for (const auto& [number, rank] : ranks_) {
    const bool member = rank.lost == absl::InfiniteFuture();
    if (member && !Runs(number)) return absl::StrCat("rank ", number, " ended without a cause");
    if (!member && Runs(number) && absl::Now() - rank.lost > kLostTime) {
      return absl::StrCat("rank ", number, " still runs ",
                          absl::FormatDuration(absl::Now() - rank.lost), " after it was lost");
    }
  }
  return "";
}

std::string ChaosGroup::CheckLeftovers() const {
  const int num_lost = static_cast<int>(ranks_.size() - members_.size());
  for (const int number : members_) {
    const Rank& rank = ranks_.at(number);
    // Rank 0 has the clients' connections beside.
    if (number == 0) continue;
    // What was closed just now may take a moment.
    const bool sockets =
        WaitFor([&] { return NumSockets(rank.pid) <= rank.sockets - num_lost; }, absl::Seconds(5));
    if (!sockets) {
      return absl::StrCat("rank ", number, " has ", NumSockets(rank.pid), " sockets; ",
                          rank.sockets, " at the start, and ", num_lost, " ranks were lost");
    }
    const bool threads = WaitFor(
        [&] { return NumThreads(rank.pid) <= rank.threads + kMoreThreads; }, absl::Seconds(5));
    if (!threads) {
      return absl::StrCat("rank ", number, " has ", NumThreads(rank.pid), " threads; ",
                          rank.threads, " at the start");
    }
  }
  return "";
}

double ChaosGroup::CpuSeconds() const {
  double seconds = 0;
  for (const int number : members_) seconds += ProcCpuSeconds(ranks_.at(number).pid);
  return seconds;
}

std::string ChaosGroup::End(int signal, absl::Duration limit) {
  Signal(0, signal);
  const int code = ranks_.at(0).process->Wait(limit);
  if (signal == SIGTERM && code != 0) return absl::StrCat("rank 0 ended with ", code, ", not 0");
  const bool gone = WaitFor(
      [this] {
        return std::none_of(ranks_.begin(), ranks_.end(),
                            [this](const auto& entry) { return Runs(entry.first); });
      },
      kLostTime);
  if (gone) return "";
  std::string left;
  for (const auto& [number, rank] : ranks_) {
    if (Runs(number)) absl::StrAppend(&left, " ", number);
  }
  return absl::StrCat("ranks that outlive the group:", left);
}

}  // namespace jevons
