// A build whose NCCL has no device-side API.
#include "parallel/peer_exchange.h"

namespace jevons {

PeerExchange::~PeerExchange() = default;

absl::Status PeerExchange::Start(int64_t bytes, const NcclCall& call, NcclMember& member) {
  return member.Error(call, absl::StatusCode::kUnimplemented,
                      "exchanges by kernels need a build with NCCL 2.28 or later");
}
absl::Status PeerExchange::Leave(const NcclCall& call, NcclMember& member) {
  return absl::OkStatus();
}
void* PeerExchange::data() const { return nullptr; }
bool PeerExchange::Holds(const void* recv) const { return false; }
absl::Status PeerExchange::Queue(const AllToAllArgs& args, void* stream, const NcclCall& call,
                                 NcclMember& member) {
  return absl::InternalError("no exchange has been started");
}
absl::Status PeerExchange::error(const NcclCall& call, const NcclMember& member) const {
  return absl::OkStatus();
}
std::string PeerExchange::missing() const { return ""; }
void PeerExchange::Stop() {}

}  // namespace jevons
