// Clients that keep a group busy and hold every answer against what it must be.
#pragma once

#include <deque>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"
#include "tests/chaos/canaries.h"
#include "tests/chaos/chaos_report.h"

namespace jevons {

// Which calls may end with UNAVAILABLE.
enum class Excuse {
  kNone,
  kNotStarted,  // the server drains: those that had no message yet
  kAll,         // rank 0 is gone
};

// One thread with a connection of its own for each client. Most of its calls are canaries that run to
// their end; some are cancelled, have a short deadline, or can not be accepted. Thread-safe.
class ChaosClients {
 public:
  // `canaries` and `report` outlive it.
  ChaosClients(const std::string& address, std::span<const Canary> canaries, int count,
               uint64_t seed, ChaosReport* report);
  ~ChaosClients();  // cancels what runs; that is counted nowhere

  // No new calls until Resume.
  void Pause();
  void Resume();
  // False if calls are open after `limit`.
  bool WaitIdle(absl::Duration limit);

  // A fault has just been made: the longest time without a message is measured from here, for each
  // open stream until it ends or the next fault is made.
  void NoteFault(const std::string& kind);
  void SetExcuse(Excuse excuse);

  // Of the open calls, the longest time without a message.
  absl::Duration LongestSilence() const;
  int num_open() const;

 private:
  struct Slot {
    CallHandle* handle = nullptr;  // of the open call
    absl::Time last;               // its last message, or its start
    absl::Time first;              // its first message; infinite: none yet
    bool measured = false;         // it was open at the last fault
    absl::Duration worst_gap;      // since then
  };
  struct Plan;

  bool stopping() const;
  void Run(int number);
  Plan Draw(Random& random) const;
  void Call(Client& client, Slot& slot, const Plan& plan);
  void Open(Slot& slot, CallHandle* handle);
  void Hear(Slot& slot);
  void ReportGapLocked(Slot& slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Judge(const Slot& slot, const Plan& plan, const Generation& got);
  bool Excused(const Slot& slot, const absl::Status& status) const;

  const std::string address_;
  const std::span<const Canary> canaries_;
  const uint64_t seed_;
  ChaosReport* const report_;

  mutable Mutex mutex_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;
  std::string fault_ ABSL_GUARDED_BY(mutex_);  // the last one
  absl::Time fault_time_ ABSL_GUARDED_BY(mutex_);
  Excuse excuse_ ABSL_GUARDED_BY(mutex_) = Excuse::kNone;
  absl::Time excuse_time_ ABSL_GUARDED_BY(mutex_);
  std::deque<Slot> slots_;  // each of its client's thread and, under mutex_, of all
  std::deque<std::thread> threads_;
};

}  // namespace jevons
