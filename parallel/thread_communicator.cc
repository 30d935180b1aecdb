#include "parallel/thread_communicator.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/mutex.h"
#include "parallel/call_check.h"

namespace jevons {
namespace {

// A rank's part of a call, for the others to read.
struct Call {
  CallHeader header;
  AllToAllArgs all_to_all = {};
  const void* data = nullptr;  // what AllGather, Broadcast and AllReduce read of this rank
};

// A range of no bytes may have no memory.
void Copy(void* to, int64_t to_offset, const void* from, int64_t from_offset, int64_t bytes) {
  if (bytes == 0) return;
  std::memcpy(static_cast<uint8_t*>(to) + to_offset,
              static_cast<const uint8_t*>(from) + from_offset, bytes);
}

}  // namespace

// A call has two parts. Ranks arrive; the last one compares the calls and starts the copies. Then
// each rank copies what it is to get, and leaves when all have copied: until then its buffers are
// read by others. Where the group breaks no more copies begin, and a rank leaves when none is under
// way.
class ThreadGroup::State {
 public:
  State(int32_t world_size, const CommunicatorOptions& options)
      : world_size_(world_size),
        timeout_(options.timeout),
        calls_(world_size),
        arrived_(world_size, false),
        copied_(world_size, false),
        joined_(world_size, false),
        watchers_(world_size, nullptr) {
    CHECK(world_size >= 1);
  }

  int32_t world_size() const { return world_size_; }
  absl::Duration timeout() const { return timeout_; }

  absl::Status Join(int32_t rank) {
    RETURN_IF_ERROR(ValidateRank({.rank = rank, .world_size = world_size_}));
    MutexLock lock(&mutex_);
    if (joined_[rank]) {
      return absl::AlreadyExistsError(absl::StrCat("rank ", rank, " has joined already"));
    }
    joined_[rank] = true;
    return absl::OkStatus();
  }

  using CopyFn = absl::FunctionRef<void(const std::vector<Call>& calls)>;
  absl::Status Run(int32_t rank, const Call& call, absl::Duration timeout, CopyFn copy) {
    ASSIGN_OR_RETURN(const int64_t this_call, Arrive(rank, call));
    return Complete(rank, this_call, timeout, copy);
  }

  // Waits for no other rank. Returns the number of the call.
  absl::StatusOr<int64_t> Arrive(int32_t rank, const Call& call) {
    MutexLock lock(&mutex_);
    if (!gone_.ok()) BreakLocked(gone_);
    RETURN_IF_ERROR(status_);
    const int64_t this_call = num_started_ + 1;
    calls_[rank] = call;
    arrived_[rank] = true;
    if (++num_arrived_ == world_size_) Start(this_call);
    return this_call;
  }

  // The rest of a call, with `timeout` for either part.
  absl::Status Complete(int32_t rank, int64_t this_call, absl::Duration timeout, CopyFn copy) {
    RETURN_IF_ERROR(BeginCopy(rank, this_call, timeout));
    copy(calls_);
    return EndCopy(rank, this_call, timeout);
  }

  // A rank that leaves a call of its own is missed by it. What others have started without it ends
  // well; the next call does not.
  void Leave(int32_t rank, bool is_in_call) {
    MutexLock lock(&mutex_);
    if (gone_.ok()) {
      gone_ = absl::AbortedError(absl::StrCat("rank ", rank, " is gone"));
      for (GroupWatcher* watcher : watchers_) {
        if (watcher != nullptr) watcher->OnGone(gone_);
      }
    }
    if (num_arrived_ > 0 || is_in_call) BreakLocked(gone_);
    if (is_in_call) WaitForReaders();
  }

  // The first error counts.
  void Break(const absl::Status& error) {
    MutexLock lock(&mutex_);
    BreakLocked(error);
  }
  absl::Status status() {
    MutexLock lock(&mutex_);
    return status_;
  }

  void Watch(int32_t rank, GroupWatcher* watcher) {
    MutexLock lock(&mutex_);
    watchers_[rank] = watcher;
    if (watcher == nullptr) return;
    if (!gone_.ok()) watcher->OnGone(gone_);
    if (!status_.ok()) watcher->OnBroken(status_);
  }

 private:
  void BreakLocked(const absl::Status& error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (status_.ok()) {
      status_ = error;
      for (GroupWatcher* watcher : watchers_) {
        if (watcher != nullptr) watcher->OnBroken(status_);
      }
    }
    changed_.NotifyAll();
  }

  absl::Status BeginCopy(int32_t rank, int64_t this_call, absl::Duration timeout) {
    const SteadyTime deadline = SteadyDeadline(timeout);
    MutexLock lock(&mutex_);
    while (status_.ok() && num_started_ < this_call) {
      if (changed_.WaitUntil(&mutex_, deadline) || num_started_ >= this_call) continue;
      BreakLocked(MissingRanks(PlaceOf(rank, this_call), Others(arrived_), timeout));
    }
    if (status_.ok()) {
      ++num_copying_;
    } else {
      WaitForReaders();
    }
    return status_;
  }

  absl::Status EndCopy(int32_t rank, int64_t this_call, absl::Duration timeout) {
    const SteadyTime deadline = SteadyDeadline(timeout);
    MutexLock lock(&mutex_);
    --num_copying_;
    copied_[rank] = true;
    if (++num_copied_ == world_size_) {
      num_copied_ = 0;
      copied_.assign(world_size_, false);
      num_finished_ = this_call;
    }
    if (num_finished_ == this_call || !status_.ok()) changed_.NotifyAll();
    while (status_.ok() && num_finished_ < this_call) {
      if (changed_.WaitUntil(&mutex_, deadline) || num_finished_ >= this_call) continue;
      BreakLocked(MissingRanks(PlaceOf(rank, this_call), Others(copied_), timeout));
    }
    if (num_finished_ >= this_call) return absl::OkStatus();
    WaitForReaders();
    return status_;
  }

  // Once the group has broken, copies end and none begin.
  void WaitForReaders() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (num_copying_ > 0) changed_.Wait(&mutex_);
  }

  void Start(int64_t this_call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Status compared = CompareAll(this_call);
    if (!compared.ok()) return BreakLocked(compared);
    num_arrived_ = 0;
    arrived_.assign(world_size_, false);
    num_started_ = this_call;
    changed_.NotifyAll();
  }

  std::string PlaceOf(int32_t rank, int64_t this_call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return CallPlace(calls_[rank].header.kind, this_call);
  }

  // The ranks that are not in `ranks`.
  std::vector<int32_t> Others(const std::vector<bool>& ranks) const {
    std::vector<int32_t> out;
    for (int32_t r = 0; r < world_size_; ++r) {
      if (!ranks[r]) out.push_back(r);
    }
    return out;
  }

  // What rank `from` says to rank `to`.
  CallHeader HeaderFor(int32_t from, int32_t to) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    CallHeader header = calls_[from].header;
    if (header.kind == CallKind::kAllToAll) {
      header.send_bytes = calls_[from].all_to_all.send_bytes[to];
      header.recv_bytes = calls_[from].all_to_all.recv_bytes[to];
    }
    return header;
  }

  absl::Status CompareAll(int64_t this_call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (int32_t a = 0; a < world_size_; ++a) {
      const std::string where = CallPlace(calls_[a].header.kind, this_call);
      for (int32_t b = a; b < world_size_; ++b) {
        RETURN_IF_ERROR(CompareCalls(where, a, HeaderFor(a, b), b, HeaderFor(b, a)));
      }
    }
    return absl::OkStatus();
  }

  const int32_t world_size_;
  const absl::Duration timeout_;
  Mutex mutex_;
  CondVar changed_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  absl::Status gone_ ABSL_GUARDED_BY(mutex_);  // of the first member that left
  // Written under the mutex while ranks arrive, read without it while they copy.
  std::vector<Call> calls_;
  std::vector<bool> arrived_ ABSL_GUARDED_BY(mutex_);  // at the call that is to start
  std::vector<bool> copied_ ABSL_GUARDED_BY(mutex_);   // in the one that has
  std::vector<bool> joined_ ABSL_GUARDED_BY(mutex_);
  std::vector<GroupWatcher*> watchers_ ABSL_GUARDED_BY(mutex_);  // by rank; null: none
  int32_t num_arrived_ ABSL_GUARDED_BY(mutex_) = 0;
  int32_t num_copying_ ABSL_GUARDED_BY(mutex_) = 0;
  int32_t num_copied_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_started_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_finished_ ABSL_GUARDED_BY(mutex_) = 0;
};

namespace {

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(ThreadGroup::State* group, int32_t rank) : group_(group), rank_(rank) {}

  ~ThreadCommunicator() override { group_->Leave(rank_, under_way_ != 0); }

  std::string Description() const override { return "threads"; }
  RankInfo info() const override { return {.rank = rank_, .world_size = group_->world_size()}; }

  absl::Status AllToAll(const AllToAllArgs& args) override {
    RETURN_IF_ERROR(StartAllToAll(args));
    return FinishAllToAll();
  }

  absl::Status StartAllToAll(const AllToAllArgs& args) override {
    RETURN_IF_ERROR(CheckAlone(CallKind::kAllToAll));
    RETURN_IF_ERROR(Check(ValidateAllToAll(args, group_->world_size())));
    started_ = args;
    ASSIGN_OR_RETURN(under_way_, group_->Arrive(rank_, {.header = {.kind = CallKind::kAllToAll},
                                                        .all_to_all = args}));
    return absl::OkStatus();
  }

  absl::Status FinishAllToAll() override {
    if (under_way_ == 0) return Check(ValidateFinish(false));
    const int64_t this_call = std::exchange(under_way_, 0);
    return group_->Complete(rank_, this_call, group_->timeout(),
                            [&](const std::vector<Call>& calls) {
                              for (size_t s = 0; s < calls.size(); ++s) {
                                const AllToAllArgs& from = calls[s].all_to_all;
                                Copy(started_.recv, started_.recv_offsets[s], from.send,
                                     from.send_offsets[rank_], started_.recv_bytes[s]);
                              }
                            });
  }

  absl::Status AllGather(const void* send, int64_t bytes, void* recv) override {
    RETURN_IF_ERROR(CheckAlone(CallKind::kAllGather));
    RETURN_IF_ERROR(Check(ValidateBytes(CallKind::kAllGather, send, bytes)));
    RETURN_IF_ERROR(Check(ValidateBytes(CallKind::kAllGather, recv, bytes)));
    const Call call = {.header = {.kind = CallKind::kAllGather, .bytes = bytes}, .data = send};
    return group_->Run(rank_, call, group_->timeout(), [&](const std::vector<Call>& calls) {
      for (size_t s = 0; s < calls.size(); ++s) {
        Copy(recv, static_cast<int64_t>(s) * bytes, calls[s].data, 0, bytes);
      }
    });
  }

  absl::Status Broadcast(void* data, int64_t bytes, int32_t root) override {
    RETURN_IF_ERROR(CheckAlone(CallKind::kBroadcast));
    RETURN_IF_ERROR(Check(ValidateBytes(CallKind::kBroadcast, data, bytes)));
    RETURN_IF_ERROR(Check(ValidateRoot(root, group_->world_size())));
    const Call call = {.header = {.kind = CallKind::kBroadcast, .root = root, .bytes = bytes},
                       .data = data};
    return group_->Run(rank_, call, group_->timeout(), [&](const std::vector<Call>& calls) {
      if (rank_ != root) Copy(data, 0, calls[root].data, 0, bytes);
    });
  }

  absl::Status AllReduce(std::span<int64_t> values, ReduceOp op) override {
    RETURN_IF_ERROR(CheckAlone(CallKind::kAllReduce));
    reduced_.assign(values.begin(), values.end());
    const Call call = {.header = {.kind = CallKind::kAllReduce,
                                  .op = op,
                                  .bytes = static_cast<int64_t>(values.size_bytes())},
                       .data = values.data()};
    RETURN_IF_ERROR(
        group_->Run(rank_, call, group_->timeout(), [&](const std::vector<Call>& calls) {
          for (size_t s = 0; s < calls.size(); ++s) {
            if (static_cast<int32_t>(s) == rank_) continue;
            Reduce(op, std::span(reduced_), static_cast<const int64_t*>(calls[s].data));
          }
        }));
    // Not before all have read `values`.
    std::copy(reduced_.begin(), reduced_.end(), values.begin());
    return absl::OkStatus();
  }

  absl::Status Barrier(absl::Duration timeout) override {
    RETURN_IF_ERROR(CheckAlone(CallKind::kBarrier));
    return group_->Run(rank_, {.header = {.kind = CallKind::kBarrier}}, timeout,
                       [](const std::vector<Call>&) {});
  }

  absl::Status Wait() override { return group_->status(); }

  void Abort(const std::string& reason) override { group_->Break(absl::AbortedError(reason)); }

  void Watch(GroupWatcher* watcher) override { group_->Watch(rank_, watcher); }

 private:
  // A call that this rank cannot make breaks the group: the others would wait for it.
  absl::Status Check(const absl::Status& status) {
    if (status.ok()) return status;
    group_->Break(status);
    return group_->status();
  }
  absl::Status CheckAlone(CallKind kind) { return Check(ValidateAlone(kind, under_way_ != 0)); }

  ThreadGroup::State* const group_;
  const int32_t rank_;
  AllToAllArgs started_ = {};
  int64_t under_way_ = 0;  // the call of `started_`; 0: none
  std::vector<int64_t> reduced_;
};

}  // namespace

ThreadGroup::ThreadGroup(int32_t world_size, const CommunicatorOptions& options)
    : state_(std::make_unique<State>(world_size, options)) {}
ThreadGroup::~ThreadGroup() = default;

absl::StatusOr<std::unique_ptr<Communicator>> ThreadGroup::Join(int32_t rank) {
  RETURN_IF_ERROR(state_->Join(rank));
  return std::make_unique<ThreadCommunicator>(state_.get(), rank);
}

void ThreadGroup::Abort(const std::string& reason) { state_->Break(absl::AbortedError(reason)); }

}  // namespace jevons
