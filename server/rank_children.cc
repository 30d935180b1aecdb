#include "server/rank_children.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"

namespace jevons {
namespace {

constexpr char kProgram[] = "/proc/self/exe";
constexpr absl::Duration kPoll = absl::Milliseconds(5);
constexpr absl::Duration kLook = absl::Milliseconds(200);
constexpr absl::Duration kLongPause = absl::Minutes(5);

// Between fork and exec: system calls alone.
[[noreturn]] void Become(char* const* arguments, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(EXIT_FAILURE);  // it is gone already
  const int nothing = open("/dev/null", O_RDONLY);
  dup2(nothing, STDIN_FILENO);
  dup2(STDERR_FILENO, STDOUT_FILENO);
  syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0);
  execv(kProgram, arguments);
  _exit(127);
}

std::string HowEnded(int status) {
  if (WIFSIGNALED(status)) return absl::StrCat("was ended by signal ", WTERMSIG(status));
  return absl::StrCat("ended with exit code ", WEXITSTATUS(status));
}

}  // namespace

RankChildren::~RankChildren() {
  const auto runs = [](const Child& child) { return child.pid > 0; };
  const absl::Time end = absl::Now() + patience_;
  StopStarting();
  {
    MutexLock lock(&mutex_);
    while (std::any_of(children_.begin(), children_.end(), runs)) {
      const bool late = absl::Now() > end;
      for (Child& child : children_) {
        if (child.pid <= 0) continue;
        if (late) kill(child.pid, SIGKILL);
        if (waitpid(child.pid, nullptr, late ? 0 : WNOHANG) != 0) child.pid = -1;
      }
      absl::SleepFor(kPoll);
    }
    over_ = true;
    changed_.NotifyAll();
  }
  if (keeper_.joinable()) keeper_.join();
}

absl::Status RankChildren::Start(
    int32_t num_ranks, const std::function<std::vector<std::string>(int32_t rank)>& arguments_of) {
  MutexLock lock(&mutex_);
  for (int32_t r = 1; r < num_ranks; ++r) {
    children_.push_back({.rank = r, .arguments = arguments_of(r)});
    RETURN_IF_ERROR(StartLocked(children_.back()));
  }
  return absl::OkStatus();
}

absl::Status RankChildren::StartLocked(Child& child) {
  std::vector<char*> pointers;
  for (std::string& argument : child.arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) {
    return absl::ErrnoToStatus(errno,
                               absl::StrCat("cannot start the process of rank ", child.rank));
  }
  if (pid == 0) Become(pointers.data(), parent);
  child.pid = pid;
  child.born = std::chrono::steady_clock::now();
  LogInfo("rank_started", {{"which", child.rank}, {"pid", pid}});
  return absl::OkStatus();
}

void RankChildren::KeepStarted(absl::Duration pause) {
  {
    MutexLock lock(&mutex_);
    starts_ = true;
    first_pause_ = pause;
  }
  keeper_ = std::thread([this] { Keep(); });
}

void RankChildren::StopStarting() {
  MutexLock lock(&mutex_);
  starts_ = false;
}

void RankChildren::Keep() {
  MutexLock lock(&mutex_);
  while (!over_) {
    for (Child& child : children_) {
      if (starts_) LookAfterLocked(child);
    }
    changed_.WaitUntil(&mutex_, SteadyDeadline(kLook));
  }
}

void RankChildren::LookAfterLocked(Child& child) {
  int status = 0;
  if (child.pid > 0 && waitpid(child.pid, &status, WNOHANG) > 0) {
    child.pid = -1;
    child.was_told = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS;
    if (!child.was_told) {
      LogWarning("rank_ended", {{"which", child.rank}, {"how", HowEnded(status)}});
    }
  }
  if (child.pid > 0 || child.was_told) return;
  const SteadyTime now = std::chrono::steady_clock::now();
  if (!child.due) {
    const bool lived_long = absl::FromChrono(now - child.born) > kLongPause;
    child.pause = lived_long || child.pause == absl::ZeroDuration()
                      ? first_pause_
                      : std::min(child.pause * 2, kLongPause);
    child.due = SteadyDeadline(child.pause);
  } else if (now >= *child.due) {
    child.due.reset();
    const absl::Status started = StartLocked(child);
    if (!started.ok()) LogError("rank_not_started", {{"error", started.ToString()}});
  }
}

void RankChildren::Kill(int32_t rank) {
  MutexLock lock(&mutex_);
  for (Child& child : children_) {
    if (child.rank != rank || child.pid <= 0) continue;
    kill(child.pid, SIGKILL);
    waitpid(child.pid, nullptr, 0);
    child.pid = -1;
  }
}

absl::Status RankChildren::Ended() {
  MutexLock lock(&mutex_);
  for (Child& child : children_) {
    int status = 0;
    if (child.pid <= 0 || waitpid(child.pid, &status, WNOHANG) <= 0) continue;
    child.pid = -1;
    return absl::UnavailableError(
        absl::StrCat("rank ", child.rank, " is lost: its process ", HowEnded(status)));
  }
  return absl::OkStatus();
}

}  // namespace jevons
