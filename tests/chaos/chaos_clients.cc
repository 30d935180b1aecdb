#include "tests/chaos/chaos_clients.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace jevons {
namespace {

// Between two calls of a client while the server takes none.
constexpr absl::Duration kRest = absl::Milliseconds(50);

}  // namespace

struct ChaosClients::Plan {
  enum class Kind { kCanary, kCancel, kDeadline, kImpossible };
  Kind kind = Kind::kCanary;
  const Canary* canary = nullptr;
  int cancel_at = 0;  // messages
  absl::Duration deadline = absl::InfiniteDuration();
};

ChaosClients::ChaosClients(const std::string& address, std::span<const Canary> canaries, int count,
                           uint64_t seed, ChaosReport* report)
    : address_(address), canaries_(canaries), seed_(seed), report_(report), slots_(count) {
  for (int i = 0; i < count; ++i) threads_.emplace_back([this, i] { Run(i); });
}

ChaosClients::~ChaosClients() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    for (const Slot& slot : slots_) {
      if (slot.handle != nullptr) slot.handle->Cancel();
    }
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ChaosClients::Pause() {
  MutexLock lock(&mutex_);
  paused_ = true;
}

void ChaosClients::Resume() {
  MutexLock lock(&mutex_);
  paused_ = false;
  changed_.NotifyAll();
}

bool ChaosClients::WaitIdle(absl::Duration limit) {
  const SteadyTime deadline = SteadyDeadline(limit);
  MutexLock lock(&mutex_);
  const auto open = [](const Slot& slot) { return slot.handle != nullptr; };
  while (std::any_of(slots_.begin(), slots_.end(), open)) {
    if (!changed_.WaitUntil(&mutex_, deadline)) return false;
  }
  return true;
}

void ChaosClients::NoteFault(const std::string& kind) {
  MutexLock lock(&mutex_);
  for (Slot& slot : slots_) {
    if (slot.handle == nullptr) continue;
    ReportGapLocked(slot);
    slot.measured = true;
  }
  fault_ = kind;
  fault_time_ = absl::Now();
}

void ChaosClients::SetExcuse(Excuse excuse) {
  MutexLock lock(&mutex_);
  excuse_ = excuse;
  excuse_time_ = absl::Now();
}

absl::Duration ChaosClients::LongestSilence() const {
  MutexLock lock(&mutex_);
  absl::Duration longest = absl::ZeroDuration();
  const absl::Time now = absl::Now();
  for (const Slot& slot : slots_) {
    if (slot.handle != nullptr) longest = std::max(longest, now - slot.last);
  }
  return longest;
}

int ChaosClients::num_open() const {
  MutexLock lock(&mutex_);
  return static_cast<int>(std::count_if(slots_.begin(), slots_.end(),
                                        [](const Slot& slot) { return slot.handle != nullptr; }));
}

void ChaosClients::Run(int number) {
  Random random(seed_ + static_cast<uint64_t>(number));
  const std::unique_ptr<Client> client = Client::Connect(address_);
  while (true) {
    {
      MutexLock lock(&mutex_);
      while (paused_ && !stop_) changed_.Wait(&mutex_);
      if (stop_) return;
    }
    Call(*client, slots_[number], Draw(random));
  }
}

ChaosClients::Plan ChaosClients::Draw(Random& random) const {
  Plan plan;
  plan.canary = &canaries_[random.Below(static_cast<int64_t>(canaries_.size()))];
  const int64_t kind = random.Below(20);
  if (kind < 3) {
    plan.kind = Plan::Kind::kCancel;
    plan.cancel_at = static_cast<int>(1 + random.Below(30));
  } else if (kind < 5) {
    plan.kind = Plan::Kind::kDeadline;
    plan.deadline = absl::Milliseconds(1 + random.Below(3000));
  } else if (kind < 6) {
    plan.kind = Plan::Kind::kImpossible;
  }
  return plan;
}

void ChaosClients::Call(Client& client, Slot& slot, const Plan& plan) {
  CallHandle handle;
  Open(slot, &handle);
  v1::GenerateRequest request = plan.canary->request;
  if (plan.kind == Plan::Kind::kImpossible) request.mutable_token_ids()->add_ids(-1);
  CallOptions options = {.handle = &handle};
  if (plan.kind == Plan::Kind::kDeadline) options.deadline = absl::Now() + plan.deadline;
  Generation got;
  got.status = client.Generate(
      request,
      [&](const v1::GenerateResponse& message) {
        got.Add(message);
        Hear(slot);
        if (plan.kind == Plan::Kind::kCancel && got.num_messages == plan.cancel_at) {
          handle.Cancel();
        }
      },
      options);
  if (!stopping()) Judge(slot, plan, got);
  if (absl::IsUnavailable(got.status)) absl::SleepFor(kRest);
  MutexLock lock(&mutex_);
  ReportGapLocked(slot);
  slot.handle = nullptr;
  changed_.NotifyAll();
}

bool ChaosClients::stopping() const {
  MutexLock lock(&mutex_);
  return stop_;
}

void ChaosClients::Open(Slot& slot, CallHandle* handle) {
  MutexLock lock(&mutex_);
  slot = {.handle = handle,
          .last = absl::Now(),
          .first = absl::InfiniteFuture(),
          .measured = false,
          .worst_gap = absl::ZeroDuration()};
  if (stop_) handle->Cancel();
}

void ChaosClients::Hear(Slot& slot) {
  MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  if (slot.measured) {
    slot.worst_gap = std::max(slot.worst_gap, now - std::max(slot.last, fault_time_));
  }
  slot.first = std::min(slot.first, now);
  slot.last = now;
}

void ChaosClients::ReportGapLocked(Slot& slot) {
  if (slot.measured && slot.worst_gap > absl::ZeroDuration()) {
    report_->AddGap(fault_, slot.worst_gap);
  }
  slot.measured = false;
  slot.worst_gap = absl::ZeroDuration();
}

// Only UNAVAILABLE is promised, to calls that end after the moment from which it is.
bool ChaosClients::Excused(const Slot& slot, const absl::Status& status) const {
  MutexLock lock(&mutex_);
  if (excuse_ == Excuse::kNone) return false;
  const bool started = slot.first < excuse_time_;
  return absl::IsUnavailable(status) && (excuse_ == Excuse::kAll || !started);
}

void ChaosClients::Judge(const Slot& slot, const Plan& plan, const Generation& got) {
  if (!got.status.ok() && Excused(slot, got.status)) {
    report_->Count("calls refused or ended where that was promised");
    return;
  }
  report_->Count("calls");
  report_->Count("tokens", static_cast<int64_t>(got.token_ids.size()));
  const Generation& want = plan.canary->want;
  std::string wrong;
  if (plan.kind == Plan::Kind::kImpossible) {
    if (!absl::IsInvalidArgument(got.status))
      wrong = absl::StrCat("not refused: ", got.status.ToString());
    report_->Count("calls refused as ill-formed");
  } else if (got.status.ok()) {
    wrong = DifferenceOf(got, want);
    report_->Count("whole answers compared");
  } else if ((plan.kind == Plan::Kind::kCancel && absl::IsCancelled(got.status)) ||
             (plan.kind == Plan::Kind::kDeadline && absl::IsDeadlineExceeded(got.status))) {
    wrong = DifferenceOfCut(got, want);
    report_->Count("cut answers compared");
  } else {
    wrong = absl::StrCat("after ", got.token_ids.size(), " tokens: ", got.status.ToString());
  }
  if (!wrong.empty()) {
    report_->Fail(absl::StrCat("canary ", plan.canary - canaries_.data(), ": ", wrong));
  }
}

}  // namespace jevons
