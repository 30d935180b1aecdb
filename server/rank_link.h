// One rank's stream of the control plane, on rank 0's side.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "base/mutex.h"
#include "grpcpp/server.h"
#include "grpcpp/support/server_callback.h"
#include "jevons/internal/v1/ranks.grpc.pb.h"
#include "server/remote_rank.h"

namespace jevons {

// What takes the messages of links.
class LinkOwner {
 public:
  virtual ~LinkOwner() = default;
  // The rank that says hello has its place, or why not.
  virtual absl::StatusOr<std::shared_ptr<RemoteRank>> Admit(const wire::Hello& hello,
                                                            std::shared_ptr<RankSender> sender) = 0;
  virtual void Hear(RemoteRank& rank, const wire::FromRank& message) = 0;
  // The stream has broken.
  virtual void Broken(RemoteRank& rank) = 0;
};

// Thread-safe; gRPC's threads call it. Holds itself until gRPC says OnDone. At most one write is on its
// way.
class RankLink : public grpc::ServerBidiReactor<wire::FromRank, wire::ToRank>,
                 public RankSender,
                 public std::enable_shared_from_this<RankLink> {
 public:
  // `owner` outlives the grpc::Server.
  static std::shared_ptr<RankLink> Create(LinkOwner* owner);

  void Send(wire::ToRank message) override;
  void Close(const absl::Status& status) override;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override {}  // OnReadDone says it too
  void OnDone() override;

 private:
  explicit RankLink(LinkOwner* owner) : owner_(owner) {}

  bool closed();
  void WriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  LinkOwner* const owner_;
  std::shared_ptr<RankLink> self_;    // until OnDone
  wire::FromRank incoming_;           // of the read on its way
  std::shared_ptr<RemoteRank> rank_;  // of the reads, one after the other

  Mutex mutex_;
  std::deque<wire::ToRank> waiting_ ABSL_GUARDED_BY(mutex_);
  wire::ToRank outgoing_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
};

// Where links come in.
class RankDoor {
 public:
  explicit RankDoor(LinkOwner* owner) : service_(owner) {}
  ~RankDoor();  // links end within a second

  // Call once. INVALID_ARGUMENT for an ill-formed address, UNAVAILABLE with the reason where it cannot
  // listen there.
  absl::Status Open(const std::string& listen);

  // Where it listens, with the port in use.
  const std::string& address() const { return address_; }

 private:
  class Service : public wire::Ranks::CallbackService {
   public:
    explicit Service(LinkOwner* owner) : owner_(owner) {}
    grpc::ServerBidiReactor<wire::FromRank, wire::ToRank>* Join(
        grpc::CallbackServerContext*) override {
      return RankLink::Create(owner_).get();
    }

   private:
    LinkOwner* const owner_;
  };

  Service service_;
  std::unique_ptr<grpc::Server> server_;  // below `service_`: it goes first
  std::string address_;
};

}  // namespace jevons
