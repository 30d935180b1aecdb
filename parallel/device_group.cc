#include "parallel/device_group.h"

#include <stop_token>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/check.h"
#include "base/mutex.h"
#include "parallel/call_check.h"
#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"

namespace jevons {

class DeviceGroup::State {
 public:
  // The two ways of a member to the others.
  struct Member {
    std::unique_ptr<Communicator> data;
    std::unique_ptr<Communicator> host;
  };

  State(int32_t world_size, const CommunicatorOptions& options, std::string id)
      : world_size_(world_size),
        options_(options),
        id_(std::move(id)),
        threads_(world_size, options),
        members_(world_size) {
    CHECK(world_size >= 1);
  }

  absl::Status Make(int32_t rank, int32_t device, void* stream, Member& out) {
    RETURN_IF_ERROR(ValidateRank({.rank = rank, .world_size = world_size_}));
    RETURN_IF_ERROR(status());
    ASSIGN_OR_RETURN(out.host, threads_.Join(rank));
    ASSIGN_OR_RETURN(out.data,
                     CreateNcclCommunicator({.rank = rank, .world_size = world_size_}, id_,
                                            {.device = device,
                                             .stream = stream,
                                             .timeout = options_.timeout,
                                             .stop = stop_.get_token()}));
    return absl::OkStatus();
  }

  // From now on an error of the others reaches the member.
  absl::Status Add(int32_t rank, Member* member) {
    MutexLock lock(&mutex_);
    if (broken_.ok()) members_[rank] = member;
    return broken_;
  }
  void Remove(int32_t rank) {
    MutexLock lock(&mutex_);
    members_[rank] = nullptr;
  }

  absl::Status status() {
    MutexLock lock(&mutex_);
    return broken_;
  }

  // The first reason counts.
  void Break(const std::string& reason) {
    MutexLock lock(&mutex_);
    if (!broken_.ok()) return;
    broken_ = absl::AbortedError(reason);
    stop_.request_stop();
    for (Member* member : members_) {
      if (member == nullptr) continue;
      member->host->Abort(reason);
      member->data->Abort(reason);
    }
  }

 private:
  const int32_t world_size_;
  const CommunicatorOptions options_;
  const std::string id_;
  ThreadGroup threads_;
  std::stop_source stop_;  // of members that are made
  Mutex mutex_;
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);
  std::vector<Member*> members_ ABSL_GUARDED_BY(mutex_);  // null before Add and after Remove
};

namespace {

class DeviceMember : public Communicator {
 public:
  DeviceMember(DeviceGroup::State* group, int32_t rank, DeviceGroup::State::Member ways)
      : group_(group), rank_(rank), ways_(std::move(ways)), broken_(group->Add(rank, &ways_)) {}
  ~DeviceMember() override { group_->Remove(rank_); }

  const absl::Status& status() const { return broken_; }

  std::string Description() const override { return ways_.data->Description(); }
  RankInfo info() const override { return ways_.data->info(); }
  absl::Status AllToAll(const AllToAllArgs& args) override {
    return Run([&] { return ways_.data->AllToAll(args); });
  }
  absl::Status StartAllToAll(const AllToAllArgs& args) override {
    RETURN_IF_ERROR(Run([&] { return ways_.data->StartAllToAll(args); }));
    is_under_way_ = true;
    return absl::OkStatus();
  }
  absl::Status FinishAllToAll() override {
    is_under_way_ = false;
    return Run([&] { return ways_.data->FinishAllToAll(); });
  }
  absl::Status AllGather(const void* send, int64_t bytes, void* recv) override {
    return Run([&] { return ways_.data->AllGather(send, bytes, recv); });
  }
  absl::Status Broadcast(void* data, int64_t bytes, int32_t root) override {
    return Run([&] { return ways_.data->Broadcast(data, bytes, root); });
  }
  absl::Status AllReduce(std::span<int64_t> values, ReduceOp op) override {
    return RunOnHost(CallKind::kAllReduce, [&] { return ways_.host->AllReduce(values, op); });
  }
  absl::Status Barrier(absl::Duration timeout) override {
    return RunOnHost(CallKind::kBarrier, [&] { return ways_.host->Barrier(timeout); });
  }
  absl::Status Wait() override {
    return Run([&] { return ways_.data->Wait(); });
  }
  absl::Status WaitUntil(absl::FunctionRef<absl::StatusOr<bool>()> is_done) override {
    return Run([&] { return ways_.data->WaitUntil(is_done); });
  }
  void Abort(const std::string& reason) override { group_->Break(reason); }

 private:
  absl::Status Run(absl::FunctionRef<absl::Status()> call) {
    RETURN_IF_ERROR(broken_);
    broken_ = group_->status();
    if (broken_.ok()) broken_ = call();
    if (!broken_.ok()) group_->Break(std::string(broken_.message()));
    return broken_;
  }

  // `data` knows nothing of these.
  absl::Status RunOnHost(CallKind kind, absl::FunctionRef<absl::Status()> call) {
    return Run([&] {
      RETURN_IF_ERROR(ValidateAlone(kind, is_under_way_));
      return call();
    });
  }

  DeviceGroup::State* const group_;
  const int32_t rank_;
  DeviceGroup::State::Member ways_;
  bool is_under_way_ = false;  // an exchange in halves
  absl::Status broken_;        // the first error that this rank has seen
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceGroup>> DeviceGroup::Create(
    int32_t world_size, const CommunicatorOptions& options) {
  ASSIGN_OR_RETURN(std::string id, MakeNcclGroupId());
  return std::unique_ptr<DeviceGroup>(
      new DeviceGroup(std::make_unique<State>(world_size, options, std::move(id))));
}

DeviceGroup::DeviceGroup(std::unique_ptr<State> state) : state_(std::move(state)) {}
DeviceGroup::~DeviceGroup() = default;

absl::StatusOr<std::unique_ptr<Communicator>> DeviceGroup::Join(int32_t rank, int32_t device,
                                                                void* stream) {
  State::Member ways;
  const absl::Status made = state_->Make(rank, device, stream, ways);
  if (!made.ok()) {
    const absl::Status others = state_->status();
    state_->Break(std::string(made.message()));
    return others.ok() ? made : others;
  }
  auto member = std::make_unique<DeviceMember>(state_.get(), rank, std::move(ways));
  RETURN_IF_ERROR(member->status());
  return member;
}

void DeviceGroup::Abort(const std::string& reason) { state_->Break(reason); }

}  // namespace jevons
