#include "parallel/faulty_communicator.h"

#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "base/mutex.h"
#include "base/random.h"

namespace jevons {
namespace {

// A range that a call filled.
struct Arrived {
  void* data = nullptr;
  int64_t bytes = 0;
};

class FaultyCommunicator : public Communicator {
 public:
  FaultyCommunicator(std::unique_ptr<Communicator> inner, FaultPlan plan)
      : inner_(std::move(inner)), plan_(std::move(plan)) {}

  std::string Description() const override { return inner_->Description() + " with faults"; }
  RankInfo info() const override { return inner_->info(); }

  absl::Status AllToAll(const AllToAllArgs& args) override {
    return Run([&] { return inner_->AllToAll(args); }, Ranges(args));
  }

  absl::Status StartAllToAll(const AllToAllArgs& args) override {
    arrives_.clear();
    RETURN_IF_ERROR(BeforeCall());
    RETURN_IF_ERROR(inner_->StartAllToAll(args));
    arrives_ = Ranges(args);
    return absl::OkStatus();
  }

  absl::Status FinishAllToAll() override {
    if (dropped_) return UntilAborted();
    const absl::Status status = inner_->FinishAllToAll();
    if (status.ok() && corrupts_) Corrupt(arrives_);
    return status;
  }

  absl::Status AllGather(const void* send, int64_t bytes, void* recv) override {
    return Run([&] { return inner_->AllGather(send, bytes, recv); },
               {{recv, bytes * info().world_size}});
  }

  absl::Status Broadcast(void* data, int64_t bytes, int32_t root) override {
    return Run([&] { return inner_->Broadcast(data, bytes, root); }, {{data, bytes}});
  }

  absl::Status AllReduce(std::span<int64_t> values, ReduceOp op) override {
    return Run([&] { return inner_->AllReduce(values, op); },
               {{values.data(), static_cast<int64_t>(values.size_bytes())}});
  }

  absl::Status Barrier(absl::Duration timeout) override {
    return Run([&] { return inner_->Barrier(timeout); }, {});
  }

  absl::Status Wait() override { return dropped_ ? UntilAborted() : inner_->Wait(); }
  ExchangePlace place() const override { return inner_->place(); }

  void Abort(const std::string& reason) override {
    inner_->Abort(reason);
    MutexLock lock(&mutex_);
    if (aborted_.ok()) aborted_ = absl::AbortedError(reason);
    changed_.NotifyAll();
  }

  void Watch(GroupWatcher* watcher) override { inner_->Watch(watcher); }

 private:
  static std::vector<Arrived> Ranges(const AllToAllArgs& args) {
    std::vector<Arrived> out;
    for (size_t s = 0; s < args.recv_bytes.size() && s < args.recv_offsets.size(); ++s) {
      out.push_back({static_cast<uint8_t*>(args.recv) + args.recv_offsets[s], args.recv_bytes[s]});
    }
    return out;
  }

  absl::Status Run(absl::FunctionRef<absl::Status()> call, const std::vector<Arrived>& arrived) {
    RETURN_IF_ERROR(BeforeCall());
    const absl::Status status = call();
    if (status.ok() && corrupts_) Corrupt(arrived);
    return status;
  }

  // The faults of the next call.
  absl::Status BeforeCall() {
    ++call_number_;
    corrupts_ = false;
    for (size_t i = 0; i < plan_.faults.size(); ++i) {
      const Fault& fault = plan_.faults[i];
      if (!Happens(fault, i)) continue;
      if (fault.kind == FaultKind::kDelay) absl::SleepFor(fault.delay);
      if (fault.kind == FaultKind::kKill && plan_.kill) plan_.kill();
      dropped_ |= fault.kind == FaultKind::kDrop;
      corrupts_ |= fault.kind == FaultKind::kCorrupt;
    }
    return dropped_ ? UntilAborted() : absl::OkStatus();
  }

  bool Happens(const Fault& fault, size_t fault_idx) const {
    if (fault.call_number != 0) return fault.call_number == call_number_;
    return RandomUniform(plan_.seed + fault_idx, call_number_) < fault.probability;
  }

  void Corrupt(const std::vector<Arrived>& arrived) {
    int64_t total = 0;
    for (const Arrived& range : arrived) total += range.bytes;
    if (total == 0) return;
    const uint64_t bits = RandomBits(~plan_.seed, call_number_);
    int64_t at = static_cast<int64_t>((bits >> 3) % static_cast<uint64_t>(total));
    for (const Arrived& range : arrived) {
      if (at < range.bytes) {
        static_cast<uint8_t*>(range.data)[at] ^= static_cast<uint8_t>(1u << (bits & 7));
        return;
      }
      at -= range.bytes;
    }
  }

  absl::Status UntilAborted() {
    MutexLock lock(&mutex_);
    while (aborted_.ok()) changed_.Wait(&mutex_);
    return aborted_;
  }

  std::unique_ptr<Communicator> inner_;
  const FaultPlan plan_;
  int64_t call_number_ = 0;
  bool dropped_ = false;
  bool corrupts_ = false;         // what the last call brings
  std::vector<Arrived> arrives_;  // with the exchange under way
  Mutex mutex_;
  CondVar changed_;
  absl::Status aborted_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<Communicator> CreateFaultyCommunicator(std::unique_ptr<Communicator> inner,
                                                       FaultPlan plan) {
  return std::make_unique<FaultyCommunicator>(std::move(inner), std::move(plan));
}

}  // namespace jevons
