#include "tests/cuda_emu/nccl_plan.h"

#include "tests/cuda_emu/state.h"

namespace jevons::emu {
namespace {

ncclResult_t Count(int64_t& count, int64_t& fail_at, ncclResult_t error) {
  if (++count != fail_at) return ncclSuccess;
  fail_at = 0;
  return error;
}

template <typename Body>
void ChangePlan(Body body) {
  State& state = GetState();
  const Lock lock(state.mutex);
  body(GetNcclPlan());
  state.changed.notify_all();
}

}  // namespace

NcclPlan& GetNcclPlan() {
  static NcclPlan* const plan = new NcclPlan;
  return *plan;
}

ncclResult_t CountNcclCall() {
  NcclPlan& plan = GetNcclPlan();
  return Count(plan.num_calls, plan.fail_call_at, plan.call_error);
}

ncclResult_t CountMeeting() {
  NcclPlan& plan = GetNcclPlan();
  return Count(plan.num_meetings, plan.fail_meeting_at, plan.meeting_error);
}

void LimitReach(int num_ranks) {
  ChangePlan([&](NcclPlan& plan) { plan.num_reached = num_ranks; });
}

void HoldRank(int rank) {
  ChangePlan([&](NcclPlan& plan) { plan.held_rank = rank; });
}

void DelayRank(int rank, int num_times) {
  ChangePlan([&](NcclPlan& plan) { plan.delay[rank] = num_times; });
}

void FailNthMeeting(int64_t n, ncclResult_t error) {
  ChangePlan([&](NcclPlan& plan) {
    plan.fail_meeting_at = plan.num_meetings + n;
    plan.meeting_error = error;
  });
}

void FailNthNcclCall(int64_t n, ncclResult_t error) {
  ChangePlan([&](NcclPlan& plan) {
    plan.fail_call_at = plan.num_calls + n;
    plan.call_error = error;
  });
}

int64_t NumNcclCalls() {
  const Lock lock(GetState().mutex);
  return GetNcclPlan().num_calls;
}

void ResetNccl() {
  ChangePlan([](NcclPlan& plan) { plan = NcclPlan(); });
}

}  // namespace jevons::emu
