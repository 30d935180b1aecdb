// Failures of communicators that a test may plan. The functions are thread-safe.
#pragma once

#include <nccl.h>

#include <cstdint>
#include <map>

namespace jevons::emu {

// This rank never comes to its calls (-1: all come). A wait for it ends by ncclCommAbort.
void HoldRank(int rank);
// Each call of the rank comes late: only when its stream has been asked so many times.
void DelayRank(int rank, int num_times);
// The n-th meeting from now on does not end, and its communicator has this asynchronous error.
void FailNthMeeting(int64_t n, ncclResult_t error);
// The n-th call from now on that would queue something or make a communicator returns this error.
void FailNthNcclCall(int64_t n, ncclResult_t error);
int64_t NumNcclCalls();
int64_t OutstandingCommunicators();
// Only so many ranks reach each other's memory.
void LimitReach(int num_ranks);
// Forgets all plans, and the count of calls.
void ResetNccl();

// For nccl.cc and collectives.cc; guarded by State::mutex.
struct NcclPlan {
  int held_rank = -1;
  int num_reached = 1 << 30;
  std::map<int, int> delay;  // by rank
  int64_t num_calls = 0;
  int64_t fail_call_at = 0;  // 0: none
  ncclResult_t call_error = ncclSuccess;
  int64_t num_meetings = 0;
  int64_t fail_meeting_at = 0;
  ncclResult_t meeting_error = ncclSuccess;
};
NcclPlan& GetNcclPlan();
// Counts a call or a meeting; the error planned for it, or success.
ncclResult_t CountNcclCall();
ncclResult_t CountMeeting();

}  // namespace jevons::emu
