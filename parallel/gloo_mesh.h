// Connections between all ranks, over Gloo's TCP transport.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "parallel/communicator.h"
#include "parallel/mesh_slot.h"

namespace jevons {

// Used by one thread, but for Break. Messages between two ranks keep their order, also with the
// payload. After an error the other ranks are told, the connections are closed, and the buffers of a
// payload are not touched any more.
class GlooMesh {
 public:
  // Listens at `host` for each other rank. A connection may take up to `timeout`.
  static absl::StatusOr<std::unique_ptr<GlooMesh>> Create(const RankInfo& info,
                                                          const std::string& host,
                                                          absl::Duration timeout);
  virtual ~GlooMesh() = default;

  // Where the other ranks connect to, for Connect at all of them: addresses[r] is rank r's.
  virtual std::string addresses() const = 0;
  virtual absl::Status Connect(const std::vector<std::string>& addresses) = 0;

  // A call starts, whose payload is in `args`, and ends well. Begin returns the group's error if there
  // is one.
  virtual absl::Status Begin(const AllToAllArgs& args) = 0;
  virtual void End() = 0;

  // What fails here shows when something is taken from the rank.
  virtual void Send(int32_t to, const MeshMessage& message, const void* inline_data) = 0;
  virtual void ExpectPayload(int32_t from) = 0;
  // After the other side's ExpectPayload.
  virtual void SendPayload(int32_t to) = 0;

  // Waits for the rank's next message. After `deadline` DEADLINE_EXCEEDED without a text; ABORTED when
  // the rank is gone, or another one whose first message of this call has not come; else the error
  // that broke the group.
  virtual absl::StatusOr<MeshMessage> Take(int32_t from, SteadyTime deadline) = 0;
  // What came with the last message, until the next one is taken.
  virtual const void* inline_data(int32_t from) const = 0;
  // Ranks whose first message of this call has not come.
  virtual std::vector<int32_t> Missing() const = 0;

  // The first error counts. From any thread; ends a Take.
  virtual void Break(const absl::Status& error) = 0;
  // Breaks the group from within a call, or before one. Returns the group's error.
  virtual absl::Status Fail(const absl::Status& error) = 0;
  virtual absl::Status status() const = 0;
  // As Communicator::Watch.
  virtual void Watch(GroupWatcher* watcher) = 0;
};

}  // namespace jevons
