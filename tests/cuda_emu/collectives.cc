#include "tests/cuda_emu/collectives.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/memory.h"
#include "tests/cuda_emu/nccl_plan.h"

namespace jevons::emu {
namespace {

struct Bf16Bits {
  uint16_t bits;
};

float Widen(Bf16Bits value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}
template <typename T>
T Widen(T value) {
  return value;
}

void Narrow(float value, Bf16Bits& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const bool is_nan = std::isnan(value);
  out.bits =
      static_cast<uint16_t>((is_nan ? bits | 0x400000u : bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}
template <typename T>
void Narrow(T value, T& out) {
  out = value;
}

template <typename T>
T Combine(T a, T b, ncclRedOp_t op) {
  return op == ncclSum ? a + b : op == ncclMax ? std::max(a, b) : std::min(a, b);
}

using Bytes = std::vector<char>;

// out[i] = inputs[0][i] op inputs[1][i] op ...
template <typename T>
void ReduceAs(const std::vector<Bytes>& inputs, ncclRedOp_t op, Bytes& out) {
  for (size_t offset = 0; offset < out.size(); offset += sizeof(T)) {
    const auto load = [&](const Bytes& bytes) {
      T value;
      std::memcpy(&value, bytes.data() + offset, sizeof(T));
      return Widen(value);
    };
    auto sum = load(inputs[0]);
    for (size_t rank = 1; rank < inputs.size(); ++rank) sum = Combine(sum, load(inputs[rank]), op);
    T rounded;
    Narrow(sum, rounded);
    std::memcpy(out.data() + offset, &rounded, sizeof(T));
  }
}

Bytes Reduce(const std::vector<Bytes>& inputs, ncclDataType_t type, ncclRedOp_t op) {
  Bytes out(inputs[0].size());
  switch (type) {
    case ncclFloat32:
      ReduceAs<float>(inputs, op, out);
      break;
    case ncclBfloat16:
      ReduceAs<Bf16Bits>(inputs, op, out);
      break;
    case ncclInt32:
      ReduceAs<int32_t>(inputs, op, out);
      break;
    default:
      ReduceAs<int64_t>(inputs, op, out);
      break;
  }
  return out;
}

bool CheckMemory(const void* address, int64_t bytes, int device) {
  if (bytes == 0) return true;
  const Allocation* const a = FindAllocation(address);
  if (a != nullptr && a->device == device && LiesWhole(address, bytes)) return true;
  ReportMisuse("a collective uses memory that is not within one allocation of its own device");
  return false;
}

Bytes Read(const void* address, int64_t bytes, int device) {
  Bytes out(bytes);
  if (CheckMemory(address, bytes, device)) std::memcpy(out.data(), address, bytes);
  return out;
}

void Write(void* address, const char* from, int64_t bytes, int device) {
  if (CheckMemory(address, bytes, device)) std::memcpy(address, from, bytes);
}

void Fail(Clique& clique, ncclResult_t error, const std::string& text) {
  clique.error = error;
  clique.error_text = text;
}

void Collect(Clique& clique, const std::vector<std::shared_ptr<Transfer>>& calls) {
  const Transfer& first = *calls[0];
  const int num_ranks = clique.num_ranks;
  const int64_t bytes = first.count * TypeBytes(first.type);
  const int64_t in_bytes = first.kind == TransferKind::kReduceScatter ? bytes * num_ranks : bytes;
  std::vector<Bytes> in(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    const bool reads = first.kind != TransferKind::kBroadcast || rank == first.peer;
    if (reads) in[rank] = Read(calls[rank]->from, in_bytes, clique.devices[rank]);
  }
  Bytes all;
  if (first.kind == TransferKind::kAllGather) {
    for (const Bytes& part : in) all.insert(all.end(), part.begin(), part.end());
  } else if (first.kind == TransferKind::kBroadcast) {
    all = in[first.peer];
  } else {
    all = Reduce(in, first.type, first.op);
  }
  const bool scatters = first.kind == TransferKind::kReduceScatter;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const char* const from = all.data() + (scatters ? rank * bytes : 0);
    Write(calls[rank]->to, from, scatters ? bytes : static_cast<int64_t>(all.size()),
          clique.devices[rank]);
  }
}

// What all ranks must agree on.
bool Agree(const Transfer& a, const Transfer& b) {
  return a.kind == b.kind && a.count == b.count && a.type == b.type && a.op == b.op &&
         a.peer == b.peer;
}

bool MeetingFails(Clique& clique) {
  const ncclResult_t planned = CountMeeting();
  if (planned == ncclSuccess) return false;
  Fail(clique, planned, "a planned asynchronous error");
  return true;
}

// One collective, if every rank has come to it.
bool MatchCollective(Clique& clique) {
  std::vector<std::shared_ptr<Transfer>> calls;
  for (const Clique::Queue& queue : clique.collectives) {
    if (queue.empty()) return false;
    calls.push_back(queue.front());
  }
  for (const auto& call : calls) {
    if (Agree(*calls[0], *call)) continue;
    ReportMisuse("ranks of a communicator met in different collectives, types, counts or roots");
    Fail(clique, ncclInvalidUsage, "ranks disagree");
    return false;
  }
  if (MeetingFails(clique)) return false;
  Collect(clique, calls);
  for (const auto& call : calls) call->done = true;
  for (Clique::Queue& queue : clique.collectives) queue.pop_front();
  return true;
}

bool MatchTransfer(Clique& clique, int sender, int receiver) {
  Clique::Queue& sends = clique.sends[{sender, receiver}];
  Clique::Queue& receives = clique.receives[{sender, receiver}];
  if (sends.empty() || receives.empty()) return false;
  Transfer& send = *sends.front();
  Transfer& receive = *receives.front();
  const int64_t bytes = send.count * TypeBytes(send.type);
  if (bytes != receive.count * TypeBytes(receive.type)) {
    ReportMisuse("a send and its receive have different sizes");
    Fail(clique, ncclInvalidUsage, "a send and its receive have different sizes");
    return false;
  }
  if (MeetingFails(clique)) return false;
  const Bytes data = Read(send.from, bytes, clique.devices[sender]);
  Write(receive.to, data.data(), bytes, clique.devices[receiver]);
  send.done = receive.done = true;
  sends.pop_front();
  receives.pop_front();
  return true;
}

}  // namespace

int64_t TypeBytes(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclFloat16:
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
  }
  return 0;
}

bool CanReduce(ncclDataType_t type, ncclRedOp_t op) {
  const bool known_type =
      type == ncclFloat32 || type == ncclBfloat16 || type == ncclInt32 || type == ncclInt64;
  return known_type && (op == ncclSum || op == ncclMax || op == ncclMin);
}

void Arrive(Clique& clique, int rank, const std::shared_ptr<Transfer>& transfer) {
  const bool is_send = transfer->kind == TransferKind::kSend;
  if (is_send || transfer->kind == TransferKind::kRecv) {
    const int sender = is_send ? rank : transfer->peer;
    const int receiver = is_send ? transfer->peer : rank;
    (is_send ? clique.sends : clique.receives)[{sender, receiver}].push_back(transfer);
    while (clique.error == ncclSuccess && MatchTransfer(clique, sender, receiver)) continue;
  } else {
    clique.collectives[rank].push_back(transfer);
    while (clique.error == ncclSuccess && MatchCollective(clique)) continue;
  }
}

void Withdraw(Clique& clique, int rank) {
  clique.collectives[rank].clear();
  for (auto& [ranks, queue] : clique.sends) {
    if (ranks.first == rank) queue.clear();
  }
  for (auto& [ranks, queue] : clique.receives) {
    if (ranks.second == rank) queue.clear();
  }
}

}  // namespace jevons::emu
