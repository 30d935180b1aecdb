#include "parallel/peer_exchange.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <nccl_device.h>

#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "parallel/peer_kernels.h"

namespace jevons {
namespace {

constexpr int64_t kAlignment = 256;

int64_t SlotBytes(int32_t num_ranks) {
  const int64_t bytes = num_ranks * int64_t{sizeof(PeerSlot)};
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// What the device writes while the host reads.
template <typename T>
T Load(const T& value) {
  return std::atomic_ref<T>(const_cast<T&>(value)).load(std::memory_order_acquire);
}

cudaStream_t ToCuda(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

PeerExchange::~PeerExchange() {
  if (shared_ != nullptr) ncclMemFree(shared_);
  cudaFree(state_);
  cudaFreeHost(report_);
}

absl::Status PeerExchange::Start(int64_t bytes, const NcclCall& call, NcclMember& member) {
  if (info_.world_size > kMostPeers) {
    return member.Error(call, absl::StatusCode::kUnimplemented,
                        absl::StrCat("exchanges by kernels join at most ", kMostPeers, " ranks"));
  }
  void* report = nullptr;
  RETURN_IF_ERROR(member.FromCuda(call, cudaMallocHost(&report, sizeof(PeerReport)),
                                  "memory that the host shares with the device"));
  report_ = new (report) PeerReport;
  member.SetPeers(this);
  RETURN_IF_ERROR(member.FromCuda(
      call, cudaMalloc(reinterpret_cast<void**>(&state_), sizeof(PeerState)), "device memory"));
  RETURN_IF_ERROR(member.FromCuda(
      call, cudaMemsetAsync(state_, 0, sizeof(PeerState), ToCuda(stream_)), "device memory"));
  constexpr int64_t kUnit = NCCL_WIN_REQUIRED_ALIGNMENT;
  bytes_ = (SlotBytes(info_.world_size) + bytes + kUnit - 1) / kUnit * kUnit;
  void* shared = nullptr;
  const ncclResult_t allocated = ncclMemAlloc(&shared, static_cast<size_t>(bytes_));
  if (allocated != ncclSuccess) {
    return member.Error(call, absl::StatusCode::kResourceExhausted,
                        absl::StrCat(bytes_, " bytes of device memory that ranks share: ",
                                     ncclGetErrorString(allocated)));
  }
  shared_ = static_cast<char*>(shared);
  RETURN_IF_ERROR(member.FromCuda(
      call, cudaMemsetAsync(shared_, 0, SlotBytes(info_.world_size), ToCuda(stream_)),
      "device memory"));
  // Nobody may write to a slot before it is 0.
  RETURN_IF_ERROR(member.WaitForStream(call));
  int32_t num_reached = 0;
  RETURN_IF_ERROR(member.Queue(call, [&](ncclComm_t comm) {
    return ncclCommWindowRegister(comm, shared_, static_cast<size_t>(bytes_), &window_,
                                  NCCL_WIN_COLL_SYMMETRIC);
  }));
  RETURN_IF_ERROR(member.Queue(call, [&](ncclComm_t comm) {
    num_reached = ncclTeamLsa(comm).nRanks;
    return ncclSuccess;
  }));
  if (window_ == nullptr || num_reached < info_.world_size) {
    return member.Error(
        call, absl::StatusCode::kUnimplemented,
        absl::StrCat("exchanges by kernels need devices that reach each other's memory; this one "
                     "reaches ",
                     window_ == nullptr ? 1 : num_reached, " of ", info_.world_size));
  }
  RETURN_IF_ERROR(member.FromCuda(
      call, LaunchFindPeers(window_, info_.world_size, state_, report_, stream_), "a kernel"));
  return member.WaitForStream(call);
}

absl::Status PeerExchange::Leave(const NcclCall& call, NcclMember& member) {
  if (window_ == nullptr) return absl::OkStatus();
  return member.Queue(call,
                      [&](ncclComm_t comm) { return ncclCommWindowDeregister(comm, window_); });
}

void* PeerExchange::data() const { return shared_ + SlotBytes(info_.world_size); }

bool PeerExchange::Holds(const void* recv) const {
  return recv >= data() && recv < shared_ + bytes_;
}

absl::Status PeerExchange::Queue(const AllToAllArgs& args, void* stream, const NcclCall& call,
                                 NcclMember& member) {
  const char* const recv = static_cast<const char*>(args.recv);
  PeerExchangeParams params;
  params.send = static_cast<const char*>(args.send);
  params.row_keys = args.row_keys;
  params.row_bytes = args.row_bytes;
  params.slots = reinterpret_cast<const PeerSlot*>(shared_);
  params.state = state_;
  params.report = report_;
  params.rank = info_.rank;
  params.num_ranks = info_.world_size;
  for (int32_t peer = 0; peer < info_.world_size; ++peer) {
    const int64_t offset = recv + args.recv_offsets[peer] - shared_;
    if (offset + args.recv_bytes[peer] > bytes_) {
      return member.Error(call, absl::StatusCode::kInvalidArgument,
                          absl::StrCat("expects ", args.recv_bytes[peer], " bytes at ", offset,
                                       " of the ", bytes_, " bytes that it shares"));
    }
    params.parts[peer] = {.send_offset = args.send_offsets[peer],
                          .send_bytes = args.send_bytes[peer],
                          .recv_offset = offset,
                          .recv_bytes = args.recv_bytes[peer]};
  }
  member.SetQueued(call);
  return member.FromCuda(call, LaunchPeerExchange(params, stream), "a kernel");
}

absl::Status PeerExchange::error(const NcclCall& call, const NcclMember& member) const {
  const uint32_t wrong = Load(report_->wrong);
  if (wrong == 0) return absl::OkStatus();
  return member.Error(call, absl::StatusCode::kInvalidArgument,
                      absl::StrCat("sends ", report_->sent, " bytes to rank ", wrong - 1,
                                   ", which expects ", report_->expected));
}

std::string PeerExchange::missing() const {
  std::string out;
  for (int32_t peer = 0; peer < info_.world_size; ++peer) {
    if (Load(report_->missing[peer]) == 0) continue;
    absl::StrAppend(&out, out.empty() ? "" : ", ", peer);
  }
  return out;
}

void PeerExchange::Stop() {
  std::atomic_ref<uint32_t>(report_->stop).store(1, std::memory_order_release);
}

}  // namespace jevons
