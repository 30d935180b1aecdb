#include "parallel/nccl_member.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

static_assert(NCCL_VERSION_CODE >= 21801, "NCCL must be 2.18.1 or later");

namespace jevons {
namespace {

using absl::StatusCode;
using std::chrono::steady_clock;

// How long a wait goes on after another rank has ended: if that one did so well, then what it has sent
// is under way.
constexpr std::chrono::milliseconds kGrace(200);

// How long kernels that use the memory of other ranks may take to end after they were told to stop.
constexpr std::chrono::milliseconds kDrain(500);

// Short waits are exact and long ones take little of a core: a pause is a small part of the time
// that has passed.
class Pauses {
 public:
  void Next() {
    const auto waited = steady_clock::now() - begin_;
    if (waited < std::chrono::microseconds(50)) return std::this_thread::yield();
    std::this_thread::sleep_for(
        std::min<steady_clock::duration>(waited / 64, std::chrono::milliseconds(1)));
  }

 private:
  const SteadyTime begin_ = steady_clock::now();
};

cudaStream_t ToCuda(void* stream) { return static_cast<cudaStream_t>(stream); }

bool IsGood(int result) { return result == ncclSuccess || result == ncclInProgress; }

StatusCode CodeOf(int result) {
  switch (result) {
    case ncclRemoteError:
    case ncclSystemError:
      return StatusCode::kAborted;  // a connection broke: the rank behind it is gone
    case ncclInvalidArgument:
    case ncclInvalidUsage:
      return StatusCode::kInvalidArgument;
    default:
      return StatusCode::kInternal;
  }
}

bool HasEnded(void* stream) {
  return stream == nullptr || cudaStreamQuery(ToCuda(stream)) != cudaErrorNotReady;
}

int AbortCommunicator(ncclComm* comm) { return ncclCommAbort(comm); }
int DestroyCommunicator(ncclComm* comm) { return ncclCommDestroy(comm); }

}  // namespace

absl::Status NcclMember::Join(const std::string& id, const NcclCall& call) {
  ncclUniqueId unique_id;
  if (id.size() != sizeof(unique_id.internal)) {
    return Error(
        call, StatusCode::kInvalidArgument,
        absl::StrCat("the id must have ", sizeof(unique_id.internal), " bytes, got ", id.size()));
  }
  std::memcpy(unique_id.internal, id.data(), id.size());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  {
    MutexLock lock(&mutex_);
    if (!broken_.ok()) return broken_;
    const ncclResult_t result =
        ncclCommInitRankConfig(&comm_, info_.world_size, unique_id, info_.rank, &config);
    RETURN_IF_ERROR(FromNccl(call, result, "ncclCommInitRankConfig"));
  }
  return WaitUntil(call, [] { return true; });
}

absl::Status NcclMember::Queue(const NcclCall& call, absl::FunctionRef<int(ncclComm*)> calls) {
  queued_ = call.name;
  {
    MutexLock lock(&mutex_);
    if (comm_ == nullptr) return broken_;
    RETURN_IF_ERROR(FromNccl(call, ncclGroupStart(), "ncclGroupStart"));
    const int called = calls(comm_);
    const int ended = ncclGroupEnd();  // after an error too: it clears the thread's group
    RETURN_IF_ERROR(FromNccl(call, called, "a call of NCCL"));
    RETURN_IF_ERROR(FromNccl(call, ended, "ncclGroupEnd"));
  }
  return WaitUntil(call, [] { return true; });
}

absl::Status NcclMember::WaitForStream(const NcclCall& call) {
  return WaitUntil(call, [&]() -> absl::StatusOr<bool> {
    const cudaError_t error = cudaStreamQuery(ToCuda(stream_));
    if (error == cudaErrorNotReady) return false;
    RETURN_IF_ERROR(FromCuda(call, error, "work on the device"));
    return true;
  });
}

absl::Status NcclMember::WaitUntil(const NcclCall& call,
                                   absl::FunctionRef<absl::StatusOr<bool>()> is_done) {
  Pauses pauses;
  SteadyTime end = call.end;
  absl::Status missing;
  while (true) {
    // In this order: what is done while NCCL has no error is done well.
    ASSIGN_OR_RETURN(const bool done, is_done());
    ASSIGN_OR_RETURN(const bool idle, IsIdle(call));
    if (done && idle) return absl::OkStatus();
    if (call.cancelled && call.cancelled()) {
      return Error(call, StatusCode::kCancelled, "told to stop");
    }
    if (missing.ok()) {
      missing = gone();
      if (!missing.ok()) end = std::min(end, steady_clock::now() + kGrace);
    }
    if (steady_clock::now() >= end) {
      RETURN_IF_ERROR(missing);
      return Error(call, StatusCode::kDeadlineExceeded,
                   absl::StrCat("not done after ", absl::FormatDuration(call.limit),
                                ", last call queued: ", queued_, "; ", MissingText()));
    }
    pauses.Next();
  }
}

absl::StatusOr<bool> NcclMember::IsIdle(const NcclCall& call) {
  MutexLock lock(&mutex_);
  if (comm_ == nullptr) return broken_;
  ncclResult_t state = ncclSuccess;
  RETURN_IF_ERROR(FromNccl(call, ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError"));
  RETURN_IF_ERROR(FromNccl(call, state, "an error of NCCL"));
  if (peers_ != nullptr) RETURN_IF_ERROR(peers_->error(call, *this));
  return state == ncclSuccess;
}

void NcclMember::SetPeers(PeerWaits* peers) {
  MutexLock lock(&mutex_);
  peers_ = peers;
  if (!broken_.ok()) peers_->Stop();
}

std::string NcclMember::MissingText() {
  MutexLock lock(&mutex_);
  const std::string missing = peers_ == nullptr ? "" : peers_->missing();
  return missing.empty() ? "a rank did not take part, NCCL does not say which"
                         : absl::StrCat("did not come: rank ", missing);
}

absl::Status NcclMember::RunUnwatched(absl::FunctionRef<absl::Status()> calls) {
  host_->Watch(nullptr);
  RETURN_IF_ERROR(calls());
  host_->Watch(this);
  return absl::OkStatus();
}

absl::Status NcclMember::Break(absl::Status status) {
  if (!BreakHere(status)) return this->status();
  host_->Abort(std::string(status.message()));
  return status;
}

bool NcclMember::BreakHere(const absl::Status& error) {
  MutexLock lock(&mutex_);
  if (!broken_.ok()) return false;
  broken_ = error;
  if (peers_ != nullptr) peers_->Stop();
  if (comm_ != nullptr) End(AbortCommunicator);
  return true;
}

void NcclMember::OnBroken(const absl::Status& error) { BreakHere(error); }

void NcclMember::OnGone(const absl::Status& who) {
  MutexLock lock(&mutex_);
  if (gone_.ok()) gone_ = who;
}

absl::Status NcclMember::gone() {
  MutexLock lock(&mutex_);
  return gone_;
}

absl::Status NcclMember::status() {
  MutexLock lock(&mutex_);
  return broken_;
}

void NcclMember::End(int (*function)(ncclComm*)) {
  std::promise<void> promise;
  ended_ = promise.get_future();
  ending_ = std::thread([function, comm = std::exchange(comm_, nullptr),
                         has_peers = peers_ != nullptr, stream = stream_,
                         side_stream = side_stream_, promise = std::move(promise)]() mutable {
    // Where a call of NCCL is in the way it goes on: what comes behind that begins after the stop.
    const SteadyTime end = steady_clock::now() + kDrain;
    Pauses pauses;
    while (has_peers && !(HasEnded(stream) && HasEnded(side_stream)) && steady_clock::now() < end) {
      pauses.Next();
    }
    function(comm);
    promise.set_value();
  });
}

bool NcclMember::Close(const NcclCall& call) {
  std::thread ending;
  std::future<void> ended;
  {
    MutexLock lock(&mutex_);
    if (comm_ != nullptr) End(DestroyCommunicator);
    ending = std::move(ending_);
    ended = std::move(ended_);
  }
  if (ending.joinable()) {
    if (ended.wait_until(call.end) != std::future_status::ready) {
      ending.detach();
      return false;
    }
    ending.join();
  }
  // Where the device has failed nothing runs any more.
  Pauses pauses;
  for (void* const stream : {stream_, side_stream_}) {
    while (!HasEnded(stream)) {
      if (steady_clock::now() >= call.end) return false;
      pauses.Next();
    }
  }
  return true;
}

absl::Status NcclMember::Error(const NcclCall& call, StatusCode code,
                               const std::string& text) const {
  return absl::Status(code, absl::StrCat(call.name, " (call ", call.number, ") at rank ",
                                         info_.rank, " of ", info_.world_size, ": ", text));
}

absl::Status NcclMember::FromCuda(const NcclCall& call, int error, const char* what) const {
  if (error == cudaSuccess) return absl::OkStatus();
  const bool lack = error == cudaErrorMemoryAllocation;
  return Error(call, lack ? StatusCode::kResourceExhausted : StatusCode::kInternal,
               absl::StrCat(what, ": ", cudaGetErrorString(static_cast<cudaError_t>(error))));
}

absl::Status NcclMember::FromNccl(const NcclCall& call, int result, const char* what) const {
  if (IsGood(result)) return absl::OkStatus();
  const std::string detail = ncclGetLastError(comm_);
  return Error(call, CodeOf(result),
               absl::StrCat(what, ": ", ncclGetErrorString(static_cast<ncclResult_t>(result)),
                            detail.empty() ? "" : ", ", detail));
}

}  // namespace jevons
