#include "parallel/gloo_communicator.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "parallel/background_call.h"
#include "parallel/call_check.h"
#include "parallel/gloo_mesh.h"

namespace jevons {
namespace {

using Type = MeshMessage::Type;

constexpr int64_t kNumParts = 3;  // of a call: what is waited for in the order of Type

const uint8_t* At(const void* base, int64_t offset) {
  return static_cast<const uint8_t*>(base) + offset;
}
uint8_t* At(void* base, int64_t offset) { return static_cast<uint8_t*>(base) + offset; }

bool IsInline(int64_t bytes) { return bytes <= MeshMessage::kMaxInlineBytes; }

// Every call is an all-to-all with a header: what a rank sends to another that sends to it in turn.
class GlooCommunicator : public Communicator {
 public:
  GlooCommunicator(const RankInfo& info, const CommunicatorOptions& options,
                   std::unique_ptr<GlooMesh> mesh)
      : info_(info),
        timeout_(options.timeout),
        mesh_(std::move(mesh)),
        zeros_(info.world_size, 0),
        send_bytes_(info.world_size),
        recv_bytes_(info.world_size),
        offsets_(info.world_size),
        rest_([this] { return Complete({.kind = CallKind::kAllToAll}, started_, timeout_); }) {}

  ~GlooCommunicator() override {
    if (under_way_) Abort(absl::StrCat("rank ", info_.rank, " is gone"));
  }

  // So that whoever gets a communicator knows that all have one.
  absl::Status Start(absl::Duration timeout) {
    RETURN_IF_ERROR(Barrier(timeout));
    call_number_ = 0;
    SetPlace({});
    return absl::OkStatus();
  }

  std::string Description() const override { return "gloo over tcp"; }
  RankInfo info() const override { return info_; }

  absl::Status AllToAll(const AllToAllArgs& args) override {
    return Run({.kind = CallKind::kAllToAll}, ValidateAllToAll(args, info_.world_size), args,
               timeout_);
  }

  // What has to be waited for is waited for beside the calling thread.
  absl::Status StartAllToAll(const AllToAllArgs& args) override {
    RETURN_IF_ERROR(
        Begin({.kind = CallKind::kAllToAll}, ValidateAllToAll(args, info_.world_size), args));
    started_ = args;
    under_way_ = true;
    rest_.Start();
    return absl::OkStatus();
  }

  absl::Status FinishAllToAll() override {
    if (under_way_) {
      under_way_ = false;
      return rest_.Finish();
    }
    RETURN_IF_ERROR(mesh_->status());
    return mesh_->Fail(ValidateFinish(false));
  }

  absl::Status AllGather(const void* send, int64_t bytes, void* recv) override {
    absl::Status valid = ValidateBytes(CallKind::kAllGather, send, bytes);
    valid.Update(ValidateBytes(CallKind::kAllGather, recv, bytes));
    return Run({.kind = CallKind::kAllGather, .bytes = bytes}, valid, GatherArgs(send, bytes, recv),
               timeout_);
  }

  absl::Status Broadcast(void* data, int64_t bytes, int32_t root) override {
    absl::Status valid = ValidateBytes(CallKind::kBroadcast, data, bytes);
    valid.Update(ValidateRoot(root, info_.world_size));
    send_bytes_.assign(info_.world_size, root == info_.rank ? bytes : 0);
    send_bytes_[info_.rank] = 0;
    recv_bytes_.assign(info_.world_size, 0);
    if (valid.ok() && root != info_.rank) recv_bytes_[root] = bytes;
    return Run({.kind = CallKind::kBroadcast, .root = root, .bytes = bytes}, valid,
               {.send = data,
                .send_offsets = zeros_,
                .send_bytes = send_bytes_,
                .recv = data,
                .recv_offsets = zeros_,
                .recv_bytes = recv_bytes_},
               timeout_);
  }

  absl::Status AllReduce(std::span<int64_t> values, ReduceOp op) override {
    const int64_t bytes = static_cast<int64_t>(values.size_bytes());
    gathered_.resize(values.size() * info_.world_size);
    RETURN_IF_ERROR(Run({.kind = CallKind::kAllReduce, .op = op, .bytes = bytes}, absl::OkStatus(),
                        GatherArgs(values.data(), bytes, gathered_.data()), timeout_));
    for (int32_t r = 0; r < info_.world_size; ++r) {
      if (r != info_.rank) Reduce(op, values, gathered_.data() + r * values.size());
    }
    return absl::OkStatus();
  }

  absl::Status Barrier(absl::Duration timeout) override {
    return Run({.kind = CallKind::kBarrier}, absl::OkStatus(), GatherArgs(nullptr, 0, nullptr),
               timeout);
  }

  absl::Status Wait() override { return mesh_->status(); }

  ExchangePlace place() const override {
    MutexLock lock(&place_mutex_);
    return place_;
  }

  void Abort(const std::string& reason) override { mesh_->Break(absl::AbortedError(reason)); }

  void Watch(GroupWatcher* watcher) override { mesh_->Watch(watcher); }

 private:
  AllToAllArgs GatherArgs(const void* send, int64_t bytes, void* recv) {
    send_bytes_.assign(info_.world_size, bytes);
    for (int32_t r = 0; r < info_.world_size; ++r) offsets_[r] = r * bytes;
    return {.send = send,
            .send_offsets = zeros_,
            .send_bytes = send_bytes_,
            .recv = recv,
            .recv_offsets = offsets_,
            .recv_bytes = send_bytes_};
  }

  absl::Status Run(const CallHeader& header, const absl::Status& valid, const AllToAllArgs& args,
                   absl::Duration timeout) {
    RETURN_IF_ERROR(Begin(header, valid, args));
    return Complete(header, args, timeout);
  }

  // Tells the others. `valid` says whether the arguments can be used. A call that this rank cannot
  // make breaks the group, for the others would wait for it.
  absl::Status Begin(const CallHeader& header, absl::Status valid, const AllToAllArgs& args) {
    const absl::Status alone = ValidateAlone(header.kind, under_way_);
    if (!alone.ok()) return BreakUnderWay(alone);
    RETURN_IF_ERROR(mesh_->status());
    if (!valid.ok()) return mesh_->Fail(valid);
    where_ = CallPlace(header.kind, ++call_number_);
    RETURN_IF_ERROR(mesh_->Begin(args));
    for (int32_t i = 1; i < info_.world_size; ++i) Announce(Other(i), header, args);
    const absl::Status copied = CopyOwn(header, args);
    return copied.ok() ? copied : mesh_->Fail(copied);
  }

  absl::Status Complete(const CallHeader& header, const AllToAllArgs& args,
                        absl::Duration timeout) {
    const absl::Status status = Exchange(header, args, timeout);
    if (!status.ok()) return mesh_->Fail(status);
    mesh_->End();
    return absl::OkStatus();
  }

  // The connections belong to the exchange: it ends, and then tells the others.
  absl::Status BreakUnderWay(const absl::Status& error) {
    mesh_->Break(error);
    return mesh_->status();
  }

  // The other ranks in an order that gives each one somebody else to serve first.
  int32_t Other(int32_t i) const { return (info_.rank + i) % info_.world_size; }

  absl::Status Exchange(const CallHeader& header, const AllToAllArgs& args,
                        absl::Duration timeout) {
    // Each may take the timeout: data that flows is no rank that stays away.
    SteadyTime deadline = SteadyDeadline(timeout);
    for (int32_t i = 1; i < info_.world_size; ++i) {
      RETURN_IF_ERROR(Hear(Other(i), header, args, deadline, timeout));
    }
    deadline = SteadyDeadline(timeout);
    for (int32_t i = 1; i < info_.world_size; ++i) {
      const int32_t from = Other(i);
      if (IsInline(args.recv_bytes[from])) continue;
      RETURN_IF_ERROR(TakeOf(from, Type::kSent, deadline, timeout).status());
      SendType(from, Type::kReceived);
    }
    deadline = SteadyDeadline(timeout);
    for (int32_t i = 1; i < info_.world_size; ++i) {
      const int32_t to = Other(i);
      if (IsInline(args.send_bytes[to])) continue;
      RETURN_IF_ERROR(TakeOf(to, Type::kReceived, deadline, timeout).status());
    }
    return absl::OkStatus();
  }

  // Tells a rank what this one is about to do, after making room for what it will send.
  void Announce(int32_t to, const CallHeader& header, const AllToAllArgs& args) {
    if (!IsInline(args.recv_bytes[to])) mesh_->ExpectPayload(to);
    const int64_t bytes = args.send_bytes[to];
    MeshMessage message = {.call_number = call_number_, .header = HeaderFor(to, header, args)};
    if (IsInline(bytes)) message.num_inline_bytes = static_cast<int32_t>(bytes);
    mesh_->Send(to, message, bytes > 0 ? At(args.send, args.send_offsets[to]) : nullptr);
  }

  // Compares a rank's call with this one, takes the data that came along, and sends the payload.
  absl::Status Hear(int32_t from, const CallHeader& header, const AllToAllArgs& args,
                    SteadyTime deadline, absl::Duration timeout) {
    ASSIGN_OR_RETURN(const MeshMessage message, TakeOf(from, Type::kCall, deadline, timeout));
    const CallHeader own = HeaderFor(from, header, args);
    RETURN_IF_ERROR(info_.rank < from
                        ? CompareCalls(where_, info_.rank, own, from, message.header)
                        : CompareCalls(where_, from, message.header, info_.rank, own));
    if (args.recv_bytes[from] > 0 && IsInline(args.recv_bytes[from])) {
      std::memcpy(At(args.recv, args.recv_offsets[from]), mesh_->inline_data(from),
                  args.recv_bytes[from]);
    }
    if (!IsInline(args.send_bytes[from])) {
      mesh_->SendPayload(from);
      SendType(from, Type::kSent);
    }
    return absl::OkStatus();
  }

  absl::Status CopyOwn(const CallHeader& header, const AllToAllArgs& args) {
    const int32_t rank = info_.rank;
    const CallHeader own = HeaderFor(rank, header, args);
    RETURN_IF_ERROR(CompareCalls(where_, rank, own, rank, own));
    if (args.send_bytes[rank] > 0) {
      std::memcpy(At(args.recv, args.recv_offsets[rank]), At(args.send, args.send_offsets[rank]),
                  args.send_bytes[rank]);
    }
    return absl::OkStatus();
  }

  static CallHeader HeaderFor(int32_t other, const CallHeader& header, const AllToAllArgs& args) {
    CallHeader out = header;
    out.send_bytes = args.send_bytes[other];
    out.recv_bytes = args.recv_bytes[other];
    return out;
  }

  void SendType(int32_t to, Type type) {
    mesh_->Send(to, {.call_number = call_number_, .type = type}, nullptr);
  }

  absl::StatusOr<MeshMessage> TakeOf(int32_t from, Type type, SteadyTime deadline,
                                     absl::Duration timeout) {
    const int64_t position = call_number_ * kNumParts + static_cast<int64_t>(type);
    SetPlace({.position = position, .waits_for = from, .behind_rows = type != Type::kCall});
    absl::StatusOr<MeshMessage> message = mesh_->Take(from, deadline);
    SetPlace({.position = position});
    if (absl::IsDeadlineExceeded(message.status()) && message.status().message().empty()) {
      std::vector<int32_t> missing = mesh_->Missing();
      if (missing.empty()) missing = {from};
      return MissingRanks(where_, missing, timeout);
    }
    if (absl::IsAborted(message.status()) && mesh_->status().ok()) {
      return absl::AbortedError(absl::StrCat(where_, ": ", message.status().message()));
    }
    RETURN_IF_ERROR(message.status());
    if (message->type != type || message->call_number != call_number_) {
      return absl::InternalError(absl::StrCat(where_, ": rank ", from, " sent part ",
                                              static_cast<int32_t>(message->type), " of call ",
                                              message->call_number));
    }
    return message;
  }

  void SetPlace(const ExchangePlace& place) {
    MutexLock lock(&place_mutex_);
    place_ = place;
  }

  const RankInfo info_;
  const absl::Duration timeout_;
  std::unique_ptr<GlooMesh> mesh_;
  int64_t call_number_ = 0;
  std::string where_;
  std::vector<int64_t> zeros_, send_bytes_, recv_bytes_, offsets_;
  std::vector<int64_t> gathered_;
  mutable Mutex place_mutex_;
  ExchangePlace place_ ABSL_GUARDED_BY(place_mutex_);
  AllToAllArgs started_ = {};
  bool under_way_ = false;  // `started_`: until Finish only `rest_` uses the mesh
  BackgroundCall rest_;     // last: it ends before what it uses
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> CreateGlooCommunicator(const GlooOptions& options) {
  const RankInfo& info = options.rendezvous.info;
  RETURN_IF_ERROR(ValidateRank(info));
  std::unique_ptr<GlooMesh> mesh;
  const SteadyTime deadline = SteadyDeadline(options.rendezvous.timeout);
  const auto make_offer = [&](const std::string& host) -> absl::StatusOr<std::string> {
    const absl::Duration each = std::min(options.connect_timeout, options.rendezvous.timeout);
    ASSIGN_OR_RETURN(mesh, GlooMesh::Create(info, host, each));
    return mesh->addresses();
  };
  if (info.world_size == 1) {
    RETURN_IF_ERROR(make_offer("").status());
  } else {
    ASSIGN_OR_RETURN(const auto addresses, Rendezvous(options.rendezvous, make_offer));
    RETURN_IF_ERROR(mesh->Connect(addresses));
  }
  auto out = std::make_unique<GlooCommunicator>(info, options.communicator, std::move(mesh));
  RETURN_IF_ERROR(out->Start(absl::FromChrono(deadline - std::chrono::steady_clock::now())));
  return out;
}

}  // namespace jevons
