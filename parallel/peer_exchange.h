// Exchanges that the devices of a group carry out by themselves, in memory that NCCL shares between
// them: its device-side API, over NVLink or within one node, since NCCL 2.28.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "parallel/communicator.h"
#include "parallel/nccl_member.h"

struct ncclWindow_vidmem;

namespace jevons {

struct PeerReport;
struct PeerState;

// One rank's end. Used by one thread, but for Stop.
class PeerExchange : public PeerWaits {
 public:
  // `stream`: a cudaStream_t, on which what Start needs is queued.
  PeerExchange(RankInfo info, void* stream) : info_(info), stream_(stream) {}
  // After the communicator has ended: nothing may run any more that uses the memory.
  ~PeerExchange() override;
  PeerExchange(const PeerExchange&) = delete;
  PeerExchange& operator=(const PeerExchange&) = delete;

  // All ranks call it, with as many bytes; to be called once. UNIMPLEMENTED in a build whose NCCL has
  // no such API, or where a rank's device does not reach all others; `member` has joined.
  absl::Status Start(int64_t bytes, const NcclCall& call, NcclMember& member);
  // All ranks call it, before the communicator ends well.
  absl::Status Leave(const NcclCall& call, NcclMember& member);

  // The bytes that the others can store to, 256-byte aligned.
  void* data() const;
  bool Holds(const void* recv) const;
  // All ranks call it, with `recv` in data(). `args` are valid; may be recorded.
  absl::Status Queue(const AllToAllArgs& args, void* stream, const NcclCall& call,
                     NcclMember& member);

  absl::Status error(const NcclCall& call, const NcclMember& member) const override;
  std::string missing() const override;
  void Stop() override;

 private:
  const RankInfo info_;
  void* const stream_;
  char* shared_ = nullptr;  // slots, then data
  int64_t bytes_ = 0;       // of all that is shared
  ncclWindow_vidmem* window_ = nullptr;
  PeerState* state_ = nullptr;
  PeerReport* report_ = nullptr;  // set before the member knows of this object
};

}  // namespace jevons
