#include "parallel/gloo_mesh.h"

#include <gloo/transport/context.h>
#include <gloo/transport/device.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "parallel/mesh_slot.h"
#include "parallel/socket.h"
#include "parallel/unreached.h"

namespace jevons {
namespace {

using gloo::transport::UnboundBuffer;

// Messages that may be on their way from one rank to another: three of a call and one of the next,
// and as many again, so that a sender never waits for the buffer of an older one.
constexpr int kNumSlots = 8;
constexpr uint64_t kNoteSlot = 2;
constexpr uint64_t kPayloadSlot = 3;
// Gloo closes every connection when one of its own waits times out: our deadlines end the waits.
constexpr std::chrono::hours kForever(24 * 365);
constexpr int kGlooTimes = 5;  // the timeout, for a connection
constexpr absl::Duration kTimerRest = absl::Seconds(60);
constexpr absl::Duration kWatcherTime = absl::Seconds(1);  // to see what a Take has seen

// The last words of a rank that breaks the group.
struct Note {
  int32_t code = 0;
  std::array<char, 508> text = {};
};

// Writing to a connection that the other side has closed is an error for us, not the end.
void IgnoreBrokenPipes() {
  struct sigaction action = {};
  sigaction(SIGPIPE, nullptr, &action);
  if (action.sa_handler == SIG_DFL) signal(SIGPIPE, SIG_IGN);
}

// What is to and from one other rank.
struct Peer {
  std::array<MeshSlot, kNumSlots> inbox;
  std::array<MeshSlot, kNumSlots> outbox;
  int64_t num_taken = 0;
  int64_t num_sent = 0;

  Note note_in;
  Note note_out;
  std::unique_ptr<UnboundBuffer> note_in_buffer;
  std::unique_ptr<UnboundBuffer> note_out_buffer;
  std::thread watcher;
};

// Three kinds of helper threads, which sleep unless something goes wrong: Gloo's own, which moves
// the bytes; one timer, which ends a Take at its deadline; a watcher for each other rank, which waits
// for its note or for the end of the connection.
class GlooMeshImpl : public GlooMesh {
 public:
  explicit GlooMeshImpl(const RankInfo& info)
      : info_(info),
        peers_(info.world_size),
        gone_(info.world_size),
        watched_(info.world_size, true),
        owed_(info.world_size, false) {}

  ~GlooMeshImpl() override { Close(); }

  absl::Status Open(const std::string& host, absl::Duration timeout) {
    if (info_.world_size == 1) return absl::OkStatus();
    // Gloo leaks where it cannot listen.
    RETURN_IF_ERROR(Socket::Listen(absl::StrCat(host, ":0")).status());
    IgnoreBrokenPipes();
    return GuardGloo([&] {
      device_ = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr(host.c_str()));
      context_ = device_->createContext(info_.rank, info_.world_size);
      context_->setTimeout(absl::ToChronoMilliseconds(timeout / kGlooTimes));
      for (int32_t r = 0; r < info_.world_size; ++r) {
        if (r != info_.rank) context_->createPair(r);
      }
    });
  }

  // Rows of equal length by rank; this rank's own is empty.
  std::string addresses() const override {
    std::string all;
    for (int32_t r = 0; r < info_.world_size; ++r) {
      if (r == info_.rank) continue;
      const std::vector<char> bytes = context_->getPair(r)->address().bytes();
      all.resize(info_.world_size * bytes.size());
      std::copy(bytes.begin(), bytes.end(), all.begin() + r * bytes.size());
    }
    return all;
  }

  absl::Status Connect(const std::vector<std::string>& addresses) override {
    for (int32_t r = 0; r < info_.world_size; ++r) {
      if (r == info_.rank) continue;
      const size_t row = addresses[r].size() / info_.world_size;
      const absl::Status connected = GuardGloo([&] {
        const std::string bytes = addresses[r].substr(info_.rank * row, row);
        context_->getPair(r)->connect(std::vector<char>(bytes.begin(), bytes.end()));
        Prepare(peers_[r], r);
      });
      if (!connected.ok()) {
        return WithUnreached(
            absl::AbortedError(absl::StrCat("connecting to rank ", r, ": ", connected.message())),
            std::span(&r, 1));
      }
    }
    for (int32_t r = 0; r < info_.world_size; ++r) {
      if (r != info_.rank) peers_[r].watcher = std::thread([this, r] { WatchPeer(r); });
    }
    timer_ = std::thread([this] { RunTimer(); });
    return absl::OkStatus();
  }

  absl::Status Begin(const AllToAllArgs& args) override {
    MutexLock lock(&mutex_);
    RETURN_IF_ERROR(status_);
    in_call_ = true;
    owed_.assign(info_.world_size, true);
    owed_[info_.rank] = false;
    args_ = args;
    if (info_.world_size == 1) return absl::OkStatus();
    int64_t send_end = 0, recv_end = 0;
    for (int32_t r = 0; r < info_.world_size; ++r) {
      send_end = std::max(send_end, args.send_offsets[r] + args.send_bytes[r]);
      recv_end = std::max(recv_end, args.recv_offsets[r] + args.recv_bytes[r]);
    }
    // Gloo does not write what it sends.
    send_payload_ = context_->createUnboundBuffer(const_cast<void*>(args.send), send_end);
    recv_payload_ = context_->createUnboundBuffer(args.recv, recv_end);
    return absl::OkStatus();
  }

  void End() override {
    send_payload_.reset();
    recv_payload_.reset();
    MutexLock lock(&mutex_);
    in_call_ = false;
    // An abort that came when the data was already there.
    if (!status_.ok()) TellOthers();
  }

  void Send(int32_t to, const MeshMessage& message, const void* inline_data) override {
    Peer& peer = peers_[to];
    MeshSlot& slot = peer.outbox[peer.num_sent++ % kNumSlots];
    slot.Write(message, inline_data);
    slot.Send(to);
  }

  void ExpectPayload(int32_t from) override {
    GuardGloo([&] {
      recv_payload_->recv(from, kPayloadSlot, args_.recv_offsets[from], args_.recv_bytes[from]);
    }).IgnoreError();
  }

  void SendPayload(int32_t to) override {
    GuardGloo([&] {
      send_payload_->send(to, kPayloadSlot, args_.send_offsets[to], args_.send_bytes[to]);
    }).IgnoreError();
  }

  absl::StatusOr<MeshMessage> Take(int32_t from, SteadyTime deadline) override {
    Peer& peer = peers_[from];
    MeshSlot& slot = peer.inbox[peer.num_taken % kNumSlots];
    // The rank may be gone by now, which is no error if nothing more is to come.
    if (peer.num_taken > 0) peer.inbox[(peer.num_taken - 1) % kNumSlots].Post(from);
    bool arrived = false;
    while (!arrived) {
      RETURN_IF_ERROR(StartWait(from, slot.buffer(), deadline));
      absl::Status waited = slot.error();
      if (waited.ok()) {
        waited = GuardGloo([&] { arrived = slot.buffer()->waitRecv(nullptr, kForever); });
      }
      RETURN_IF_ERROR(EndWait(from, waited));
    }
    ++peer.num_taken;
    owed_[from] = false;
    return slot.message();
  }

  const void* inline_data(int32_t from) const override {
    const Peer& peer = peers_[from];
    return peer.inbox[(peer.num_taken - 1) % kNumSlots].data();
  }

  std::vector<int32_t> Missing() const override {
    std::vector<int32_t> missing;
    for (int32_t r = 0; r < info_.world_size; ++r) {
      if (owed_[r] && !Arrived(r)) missing.push_back(r);
    }
    return missing;
  }

  void Break(const absl::Status& error) override {
    MutexLock lock(&mutex_);
    Keep(error);
    Wake();
    // Only one thread may send: where a call runs, it tells them when it ends.
    if (!in_call_) TellOthers();
  }

  absl::Status Fail(const absl::Status& error) override {
    {
      MutexLock lock(&mutex_);
      Keep(error);
      TellOthers();
    }
    Close();
    return status();
  }

  absl::Status status() const override {
    MutexLock lock(&mutex_);
    return status_;
  }

  void Watch(GroupWatcher* watcher) override {
    MutexLock lock(&mutex_);
    watcher_ = watcher;
    if (watcher == nullptr) return;
    for (const absl::Status& gone : gone_) {
      if (!gone.ok()) watcher->OnGone(gone);
    }
    if (!status_.ok()) watcher->OnBroken(status_);
  }

  void Close() {
    {
      MutexLock lock(&mutex_);
      stop_ = true;
      in_call_ = false;
      timer_wakes_.NotifyAll();
    }
    if (timer_.joinable()) timer_.join();
    for (Peer& peer : peers_) {
      if (!peer.watcher.joinable()) continue;
      peer.note_in_buffer->abortWaitRecv();
      peer.watcher.join();
    }
    for (int32_t r = 0; context_ != nullptr && r < info_.world_size; ++r) {
      // Destroyed, not closed: what has been written still goes out.
      if (r != info_.rank) context_->getPair(r).reset();
    }
    send_payload_.reset();
    recv_payload_.reset();
    peers_.clear();
    context_.reset();
    device_.reset();
  }

 private:
  void Prepare(Peer& peer, int32_t rank) {
    for (MeshSlot& slot : peer.outbox) slot.Create(*context_);
    for (MeshSlot& slot : peer.inbox) {
      slot.Create(*context_);
      slot.Post(rank);
    }
    peer.note_out_buffer = context_->createUnboundBuffer(&peer.note_out, sizeof(Note));
    peer.note_in_buffer = context_->createUnboundBuffer(&peer.note_in, sizeof(Note));
    peer.note_in_buffer->recv(rank, kNoteSlot, 0, sizeof(Note));
  }

  void WatchPeer(int32_t rank) {
    Peer& peer = peers_[rank];
    bool has_note = false;
    const absl::Status waited =
        GuardGloo([&] { has_note = peer.note_in_buffer->waitRecv(nullptr, kForever); });
    MutexLock lock(&mutex_);
    if (has_note) {
      peer.note_in.text.back() = '\0';
      Keep(
          absl::Status(static_cast<absl::StatusCode>(peer.note_in.code), peer.note_in.text.data()));
    }
    if (!waited.ok()) {
      gone_[rank] = absl::AbortedError(absl::StrCat("rank ", rank, " is gone: ", waited.message()));
      if (watcher_ != nullptr) watcher_->OnGone(gone_[rank]);
    }
    watched_[rank] = false;
    Wake();
  }

  void RunTimer() {
    MutexLock lock(&mutex_);
    while (!stop_) {
      const SteadyTime now = std::chrono::steady_clock::now();
      if (waiting_ != nullptr && now >= deadline_) Wake();
      timer_until_ = waiting_ != nullptr ? deadline_ : SteadyDeadline(kTimerRest);
      timer_wakes_.WaitUntil(&mutex_, timer_until_);
    }
  }

  // The first error of the group stays.
  void Keep(const absl::Status& error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!status_.ok()) return;
    status_ = error;
    if (watcher_ != nullptr) watcher_->OnBroken(status_);
  }

  // Ends the wait of a Take, which then looks why.
  void Wake() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (waiting_ != nullptr) waiting_->abortWaitRecv();
    waiting_ = nullptr;
    changed_.NotifyAll();
  }

  bool Arrived(int32_t rank) const {
    const Peer& peer = peers_[rank];
    return peer.inbox[peer.num_taken % kNumSlots].Arrived();
  }

  absl::Status StartWait(int32_t from, UnboundBuffer* buffer, SteadyTime deadline) {
    MutexLock lock(&mutex_);
    RETURN_IF_ERROR(status_);
    for (int32_t r = 0; r < info_.world_size; ++r) {
      if (!gone_[r].ok() && (owed_[r] || r == from) && !Arrived(r)) return gone_[r];
    }
    if (std::chrono::steady_clock::now() >= deadline) return absl::DeadlineExceededError("");
    waiting_ = buffer;
    deadline_ = deadline;
    if (deadline < timer_until_) timer_wakes_.NotifyAll();
    return absl::OkStatus();
  }

  absl::Status EndWait(int32_t from, const absl::Status& waited) {
    MutexLock lock(&mutex_);
    waiting_ = nullptr;
    if (waited.ok()) return absl::OkStatus();
    // The watcher of the same connection knows whether the rank has left a note.
    const SteadyTime deadline = SteadyDeadline(kWatcherTime);
    while (watched_[from] && changed_.WaitUntil(&mutex_, deadline)) continue;
    RETURN_IF_ERROR(status_);
    return gone_[from].ok() ? waited : gone_[from];
  }

  void TellOthers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (told_) return;
    told_ = true;
    for (int32_t r = 0; r < info_.world_size; ++r) {
      Peer& peer = peers_[r];
      if (r == info_.rank || peer.note_out_buffer == nullptr) continue;
      peer.note_out.code = static_cast<int32_t>(status_.code());
      const absl::string_view text = status_.message().substr(0, peer.note_out.text.size() - 1);
      std::copy(text.begin(), text.end(), peer.note_out.text.begin());
      GuardGloo([&] { peer.note_out_buffer->send(r, kNoteSlot, 0, sizeof(Note)); }).IgnoreError();
    }
  }

  const RankInfo info_;
  std::shared_ptr<gloo::transport::Device> device_;
  std::shared_ptr<gloo::transport::Context> context_;
  std::vector<Peer> peers_;  // this rank's own is not used
  std::unique_ptr<UnboundBuffer> send_payload_;
  std::unique_ptr<UnboundBuffer> recv_payload_;
  AllToAllArgs args_;
  std::thread timer_;

  mutable Mutex mutex_;
  CondVar changed_;
  CondVar timer_wakes_;
  bool in_call_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool told_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  GroupWatcher* watcher_ ABSL_GUARDED_BY(mutex_) = nullptr;  // null: none
  std::vector<absl::Status> gone_ ABSL_GUARDED_BY(mutex_);
  std::vector<bool> watched_ ABSL_GUARDED_BY(mutex_);
  std::vector<bool> owed_;  // changed by the calling thread alone
  UnboundBuffer* waiting_ ABSL_GUARDED_BY(mutex_) = nullptr;
  SteadyTime deadline_ ABSL_GUARDED_BY(mutex_);
  SteadyTime timer_until_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<GlooMesh>> GlooMesh::Create(const RankInfo& info,
                                                           const std::string& host,
                                                           absl::Duration timeout) {
  auto mesh = std::make_unique<GlooMeshImpl>(info);
  const absl::Status opened = mesh->Open(host, timeout);
  if (!opened.ok()) {
    return absl::UnavailableError(
        absl::StrCat("no room for other ranks to connect to: ", opened.message()));
  }
  return mesh;
}

}  // namespace jevons
