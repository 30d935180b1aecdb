#include "parallel/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "parallel/call_check.h"
#include "parallel/nccl_member.h"
#include "parallel/peer_exchange.h"

namespace jevons {
namespace {

bool IsGood(ncclResult_t result) { return result == ncclSuccess || result == ncclInProgress; }

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, const NcclOptions& options)
      : info_(host->info()),
        host_(std::move(host)),
        options_(options),
        stream_(static_cast<cudaStream_t>(options.stream)),
        member_(options.stream, host_.get()) {}
  ~NcclCommunicator() override;

  // Joins the group. To be called once, before all else but Abort.
  absl::Status Start();

  std::string Description() const override;
  RankInfo info() const override { return info_; }
  ExchangePlace place() const override { return host_->place(); }
  absl::StatusOr<void*> ReceiveMemory(int64_t bytes) override;
  absl::Status AllToAll(const AllToAllArgs& args) override;
  absl::Status StartAllToAll(const AllToAllArgs& args) override;
  absl::Status FinishAllToAll() override;
  absl::Status AllGather(const void* send, int64_t bytes, void* recv) override;
  absl::Status Broadcast(void* data, int64_t bytes, int32_t root) override;
  absl::Status AllReduce(std::span<int64_t> values, ReduceOp op) override;
  absl::Status Barrier(absl::Duration timeout) override;
  absl::Status Wait() override;
  absl::Status WaitUntil(absl::FunctionRef<absl::StatusOr<bool>()> is_done) override;
  void Abort(const std::string& reason) override;

 private:
  // One call on the device: an error breaks the group, and the group's first error is what it returns.
  absl::Status Run(const NcclCall& call, absl::FunctionRef<absl::Status()> body);
  // One call on host memory, which waits for no device.
  absl::Status RunOnHost(const NcclCall& call, const CallHeader& header,
                         absl::FunctionRef<absl::Status()> body);
  NcclCall NextCall(CallKind kind, absl::Duration timeout) {
    return NcclCall(CallName(kind), ++num_calls_, timeout);
  }

  absl::Status TakeResources(const NcclCall& call);
  // The name of the new group, which rank 0 makes.
  absl::StatusOr<std::string> AgreeOnId();
  absl::Status Connect(const NcclCall& call);
  // Compares what the ranks are about to do, where the options say so. `args` of AllToAll alone.
  absl::Status Compare(const NcclCall& call, const CallHeader& own, const AllToAllArgs& args);
  absl::Status CompareWithAll(const NcclCall& call, const CallHeader& own,
                              const AllToAllArgs& args);
  absl::Status CheckAllToAll(const NcclCall& call, const AllToAllArgs& args);
  absl::Status QueueAllToAll(const NcclCall& call, const AllToAllArgs& args, cudaStream_t stream);
  // What is queued on `to` from now on comes after what is on `from`.
  absl::Status Order(const NcclCall& call, cudaStream_t from, cudaEvent_t event, cudaStream_t to);

  const RankInfo info_;
  const std::unique_ptr<Communicator> host_;
  const NcclOptions options_;
  const cudaStream_t stream_;
  cudaStream_t side_stream_ = nullptr;  // of exchanges beside the stream
  cudaEvent_t begin_ = nullptr;         // on the stream: the exchange may begin
  cudaEvent_t end_ = nullptr;           // on the side stream: it is done
  bool under_way_ = false;
  std::unique_ptr<PeerExchange> peers_;  // null: NCCL moves everything
  NcclMember member_;
  char* bytes_ = nullptr;  // device memory: what the creation sends and receives
  int64_t num_calls_ = 0;
};

NcclCommunicator::~NcclCommunicator() {
  // The other ranks may still need what is queued.
  if (under_way_) FinishAllToAll().IgnoreError();
  const bool intact = Wait().ok();
  const NcclCall end("End", num_calls_, options_.timeout);
  if (intact && peers_ != nullptr)
    Run(end, [&] { return peers_->Leave(end, member_); }).IgnoreError();
  if (!member_.Close(end)) {
    // Memory that something may still write is better lost than given away.
    static_cast<void>(peers_.release());
    LogError("nccl_communicator_stays",
             {{"rank", info_.rank}, {"waited", absl::FormatDuration(options_.timeout)}});
  } else {
    cudaFree(bytes_);
    if (begin_ != nullptr) cudaEventDestroy(begin_);
    if (end_ != nullptr) cudaEventDestroy(end_);
    if (side_stream_ != nullptr) cudaStreamDestroy(side_stream_);
  }
}

absl::Status NcclCommunicator::Run(const NcclCall& call, absl::FunctionRef<absl::Status()> body) {
  RETURN_IF_ERROR(member_.status());
  absl::Status status =
      member_.FromCuda(call, cudaSetDevice(options_.device), "choice of the device");
  if (status.ok()) status = body();
  return status.ok() ? status : member_.Break(std::move(status));
}

absl::Status NcclCommunicator::RunOnHost(const NcclCall& call, const CallHeader& header,
                                         absl::FunctionRef<absl::Status()> body) {
  RETURN_IF_ERROR(member_.status());
  absl::Status status = ValidateAlone(header.kind, under_way_);
  if (status.ok()) status = Compare(call, header, {});
  if (status.ok()) status = body();
  return status.ok() ? status : member_.Break(std::move(status));
}

void NcclCommunicator::Abort(const std::string& reason) {
  member_.Break(absl::AbortedError(reason)).IgnoreError();
}

absl::Status NcclCommunicator::Start() {
  const NcclCall call("Create", 0, options_.create_timeout, options_.cancelled);
  return Run(call, [&]() -> absl::Status {
    if (stream_ == nullptr) return absl::InvalidArgumentError("stream must be given");
    RETURN_IF_ERROR(TakeResources(call));
    ASSIGN_OR_RETURN(const std::string id, AgreeOnId());
    RETURN_IF_ERROR(member_.Join(id, call));
    return Connect(call);
  });
}

absl::StatusOr<std::string> NcclCommunicator::AgreeOnId() {
  ncclUniqueId id = {};
  if (info_.rank == 0) {
    const ncclResult_t result = ncclGetUniqueId(&id);
    if (result != ncclSuccess) {
      return absl::UnavailableError(
          absl::StrCat("no id for a group of NCCL: ", ncclGetErrorString(result)));
    }
  }
  RETURN_IF_ERROR(host_->Broadcast(id.internal, sizeof(id.internal), 0));
  return std::string(id.internal, sizeof(id.internal));
}

absl::Status NcclCommunicator::TakeResources(const NcclCall& call) {
  const size_t bytes = 2 * static_cast<size_t>(info_.world_size);
  RETURN_IF_ERROR(member_.FromCuda(call, cudaMalloc(reinterpret_cast<void**>(&bytes_), bytes),
                                   "device memory"));
  RETURN_IF_ERROR(
      member_.FromCuda(call, cudaMemsetAsync(bytes_, 0, bytes, stream_), "device memory"));
  // Few blocks, which are to run beside a product of many.
  int least = 0, greatest = 0;
  RETURN_IF_ERROR(member_.FromCuda(call, cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                   "priorities of streams"));
  RETURN_IF_ERROR(member_.FromCuda(
      call, cudaStreamCreateWithPriority(&side_stream_, cudaStreamNonBlocking, greatest),
      "a stream"));
  member_.AddStream(side_stream_);
  for (cudaEvent_t* event : {&begin_, &end_}) {
    RETURN_IF_ERROR(member_.FromCuda(call, cudaEventCreateWithFlags(event, cudaEventDisableTiming),
                                     "an event"));
  }
  return absl::OkStatus();
}

// NCCL connects ranks, and takes memory for it, at their first call of a kind.
absl::Status NcclCommunicator::Connect(const NcclCall& call) {
  char* const other = bytes_ + info_.world_size;
  RETURN_IF_ERROR(member_.Queue(call, [&](ncclComm_t comm) {
    ncclResult_t result = ncclSuccess;
    for (int32_t peer = 0; peer < info_.world_size && IsGood(result); ++peer) {
      result = ncclSend(bytes_ + peer, 1, ncclInt8, peer, comm, stream_);
      if (IsGood(result)) result = ncclRecv(other + peer, 1, ncclInt8, peer, comm, stream_);
    }
    return result;
  }));
  RETURN_IF_ERROR(member_.Queue(call, [&](ncclComm_t comm) {
    return ncclAllGather(bytes_, other, 1, ncclInt8, comm, stream_);
  }));
  RETURN_IF_ERROR(member_.Queue(call, [&](ncclComm_t comm) {
    return ncclBroadcast(bytes_, bytes_, 1, ncclInt8, 0, comm, stream_);
  }));
  return member_.WaitForStream(call);
}

std::string NcclCommunicator::Description() const {
  int version = 0;
  ncclGetVersion(&version);
  return absl::StrCat("nccl ", version / 10000, ".", version / 100 % 100, ".", version % 100,
                      " with ", host_->Description());
}

absl::Status NcclCommunicator::AllToAll(const AllToAllArgs& args) {
  const NcclCall call = NextCall(CallKind::kAllToAll, options_.timeout);
  return Run(call, [&]() -> absl::Status {
    RETURN_IF_ERROR(CheckAllToAll(call, args));
    return QueueAllToAll(call, args, stream_);
  });
}

absl::Status NcclCommunicator::StartAllToAll(const AllToAllArgs& args) {
  const NcclCall call = NextCall(CallKind::kAllToAll, options_.timeout);
  return Run(call, [&]() -> absl::Status {
    RETURN_IF_ERROR(CheckAllToAll(call, args));
    RETURN_IF_ERROR(Order(call, stream_, begin_, side_stream_));
    const absl::Status queued = QueueAllToAll(call, args, side_stream_);
    under_way_ = queued.ok();
    // Some of it may be there: the stream comes to its end after it.
    if (!under_way_) Order(call, side_stream_, end_, stream_).IgnoreError();
    return queued;
  });
}

absl::Status NcclCommunicator::FinishAllToAll() {
  const NcclCall call("FinishAllToAll", num_calls_, options_.timeout);
  const bool was_under_way = std::exchange(under_way_, false);
  // In a broken group too.
  const absl::Status ordered =
      was_under_way ? Order(call, side_stream_, end_, stream_) : ValidateFinish(false);
  return Run(call, [&] { return ordered; });
}

absl::Status NcclCommunicator::Order(const NcclCall& call, cudaStream_t from, cudaEvent_t event,
                                     cudaStream_t to) {
  RETURN_IF_ERROR(member_.FromCuda(call, cudaEventRecord(event, from), "an event"));
  return member_.FromCuda(call, cudaStreamWaitEvent(to, event, 0), "a wait for an event");
}

absl::Status NcclCommunicator::CheckAllToAll(const NcclCall& call, const AllToAllArgs& args) {
  RETURN_IF_ERROR(ValidateAlone(CallKind::kAllToAll, under_way_));
  RETURN_IF_ERROR(ValidateAllToAll(args, info_.world_size));
  const int64_t sent = args.send_bytes[info_.rank];
  const int64_t expected = args.recv_bytes[info_.rank];
  if (sent != expected) {
    return member_.Error(call, absl::StatusCode::kInvalidArgument,
                         absl::StrCat("sends ", sent, " bytes to itself and expects ", expected));
  }
  return Compare(call, {.kind = CallKind::kAllToAll}, args);
}

absl::StatusOr<void*> NcclCommunicator::ReceiveMemory(int64_t bytes) {
  if (options_.exchange_by == ExchangeBy::kCalls) return nullptr;
  const NcclCall call("ReceiveMemory", ++num_calls_, options_.create_timeout);
  RETURN_IF_ERROR(Run(call, [&]() -> absl::Status {
    if (peers_ != nullptr || bytes < 0) {
      return member_.Error(call, absl::StatusCode::kInvalidArgument,
                           absl::StrCat("to be called once, with a size, given ", bytes));
    }
    peers_ = std::make_unique<PeerExchange>(info_, stream_);
    return peers_->Start(bytes, call, member_);
  }));
  return peers_->data();
}

absl::Status NcclCommunicator::QueueAllToAll(const NcclCall& call, const AllToAllArgs& args,
                                             cudaStream_t stream) {
  if (peers_ != nullptr && peers_->Holds(args.recv)) {
    return peers_->Queue(args, stream, call, member_);
  }
  return member_.Queue(call, [&](ncclComm_t comm) {
    ncclResult_t result = ncclSuccess;
    for (int32_t peer = 0; peer < info_.world_size && IsGood(result); ++peer) {
      const char* const send = static_cast<const char*>(args.send) + args.send_offsets[peer];
      char* const recv = static_cast<char*>(args.recv) + args.recv_offsets[peer];
      const size_t send_bytes = static_cast<size_t>(args.send_bytes[peer]);
      const size_t recv_bytes = static_cast<size_t>(args.recv_bytes[peer]);
      if (send_bytes > 0) result = ncclSend(send, send_bytes, ncclInt8, peer, comm, stream);
      if (recv_bytes == 0 || !IsGood(result)) continue;
      result = ncclRecv(recv, recv_bytes, ncclInt8, peer, comm, stream);
    }
    return result;
  });
}

absl::Status NcclCommunicator::AllGather(const void* send, int64_t bytes, void* recv) {
  const NcclCall call = NextCall(CallKind::kAllGather, options_.timeout);
  return Run(call, [&]() -> absl::Status {
    RETURN_IF_ERROR(ValidateAlone(CallKind::kAllGather, under_way_));
    RETURN_IF_ERROR(ValidateBytes(CallKind::kAllGather, send, bytes));
    RETURN_IF_ERROR(ValidateBytes(CallKind::kAllGather, recv, bytes));
    RETURN_IF_ERROR(Compare(call, {.kind = CallKind::kAllGather, .bytes = bytes}, {}));
    if (bytes == 0) return absl::OkStatus();
    return member_.Queue(call, [&](ncclComm_t comm) {
      return ncclAllGather(send, recv, static_cast<size_t>(bytes), ncclInt8, comm, stream_);
    });
  });
}

absl::Status NcclCommunicator::Broadcast(void* data, int64_t bytes, int32_t root) {
  const NcclCall call = NextCall(CallKind::kBroadcast, options_.timeout);
  return Run(call, [&]() -> absl::Status {
    RETURN_IF_ERROR(ValidateAlone(CallKind::kBroadcast, under_way_));
    RETURN_IF_ERROR(ValidateBytes(CallKind::kBroadcast, data, bytes));
    RETURN_IF_ERROR(ValidateRoot(root, info_.world_size));
    RETURN_IF_ERROR(
        Compare(call, {.kind = CallKind::kBroadcast, .root = root, .bytes = bytes}, {}));
    if (bytes == 0) return absl::OkStatus();
    return member_.Queue(call, [&](ncclComm_t comm) {
      return ncclBroadcast(data, data, static_cast<size_t>(bytes), ncclInt8, root, comm, stream_);
    });
  });
}

absl::Status NcclCommunicator::AllReduce(std::span<int64_t> values, ReduceOp op) {
  const NcclCall call = NextCall(CallKind::kAllReduce, options_.timeout);
  const int64_t bytes = static_cast<int64_t>(values.size_bytes());
  return RunOnHost(call, {.kind = CallKind::kAllReduce, .op = op, .bytes = bytes},
                   [&] { return host_->AllReduce(values, op); });
}

absl::Status NcclCommunicator::Barrier(absl::Duration timeout) {
  const NcclCall call = NextCall(CallKind::kBarrier, timeout);
  return RunOnHost(call, {.kind = CallKind::kBarrier}, [&] { return host_->Barrier(timeout); });
}

absl::Status NcclCommunicator::Wait() {
  const NcclCall call("Wait", num_calls_, options_.timeout);
  return Run(call, [&] { return member_.WaitForStream(call); });
}

absl::Status NcclCommunicator::WaitUntil(absl::FunctionRef<absl::StatusOr<bool>()> is_done) {
  const NcclCall call("Wait", num_calls_, options_.timeout);
  return Run(call, [&] { return member_.WaitUntil(call, is_done); });
}

absl::Status NcclCommunicator::Compare(const NcclCall& call, const CallHeader& own,
                                       const AllToAllArgs& args) {
  if (options_.check == NcclCheck::kOff) return absl::OkStatus();
  // All find the same, and none hears of it from another before it has.
  return member_.RunUnwatched([&] { return CompareWithAll(call, own, args); });
}

absl::Status NcclCommunicator::CompareWithAll(const NcclCall& call, const CallHeader& own,
                                              const AllToAllArgs& args) {
  const int32_t world_size = info_.world_size;
  std::vector<CallHeader> headers(world_size, own);  // to each of the others
  for (int32_t peer = 0; own.kind == CallKind::kAllToAll && peer < world_size; ++peer) {
    headers[peer].send_bytes = args.send_bytes[peer];
    headers[peer].recv_bytes = args.recv_bytes[peer];
  }
  std::vector<CallHeader> all(headers.size() * headers.size());
  const int64_t bytes = world_size * int64_t{sizeof(CallHeader)};
  absl::Status status = host_->Barrier(call.limit);
  if (status.ok()) status = host_->AllGather(headers.data(), bytes, all.data());
  if (!status.ok()) return member_.Error(call, status.code(), std::string(status.message()));
  // In the same order on all ranks, so that all find the same.
  for (int32_t a = 0; a < world_size; ++a) {
    for (int32_t b = a; b < world_size; ++b) {
      RETURN_IF_ERROR(CompareCalls(CallPlace(own.kind, call.number), a, all[a * world_size + b], b,
                                   all[b * world_size + a]));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(
    std::unique_ptr<Communicator> host, const NcclOptions& options) {
  auto out = std::make_unique<NcclCommunicator>(std::move(host), options);
  RETURN_IF_ERROR(out->Start());
  return out;
}

}  // namespace jevons
