#include "parallel/call_check.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "parallel/unreached.h"

namespace jevons {
namespace {

const char* OpName(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return "sum";
    case ReduceOp::kMin:
      return "min";
    case ReduceOp::kMax:
      return "max";
  }
  return "unknown";
}

absl::Status Differ(const std::string& where, const char* what, int32_t rank_a,
                    const std::string& a, int32_t rank_b, const std::string& b) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", what, " is ", a, " at rank ", rank_a,
                                                 " and ", b, " at rank ", rank_b));
}

absl::Status CompareBytes(const std::string& where, int32_t from, int64_t sent, int32_t to,
                          int64_t expected) {
  if (sent == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(where, ": rank ", from, " sends ", sent,
                                                 " bytes to rank ", to, ", which expects ",
                                                 expected));
}

// One direction of an all-to-all.
absl::Status ValidateRanges(const char* name, const void* data, std::span<const int64_t> offsets,
                            std::span<const int64_t> bytes, int32_t world_size) {
  if (static_cast<int64_t>(offsets.size()) != world_size ||
      static_cast<int64_t>(bytes.size()) != world_size) {
    return absl::InvalidArgumentError(absl::StrCat("AllToAll: ", name, " has ", offsets.size(),
                                                   " offsets and ", bytes.size(), " sizes for ",
                                                   world_size, " ranks"));
  }
  for (int32_t r = 0; r < world_size; ++r) {
    if (bytes[r] < 0 || offsets[r] < 0) {
      return absl::InvalidArgumentError(absl::StrCat("AllToAll: ", name, " range of rank ", r,
                                                     " has offset ", offsets[r], " and ", bytes[r],
                                                     " bytes; both must be at least 0"));
    }
    if (bytes[r] > 0 && data == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("AllToAll: ", name, " is null with ", bytes[r], " bytes of rank ", r));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view ExchangeByName(ExchangeBy by) {
  return by == ExchangeBy::kKernels ? "kernels" : "calls";
}

const char* CallName(CallKind kind) {
  switch (kind) {
    case CallKind::kAllToAll:
      return "AllToAll";
    case CallKind::kAllGather:
      return "AllGather";
    case CallKind::kBroadcast:
      return "Broadcast";
    case CallKind::kAllReduce:
      return "AllReduce";
    case CallKind::kBarrier:
      return "Barrier";
  }
  return "an unknown call";
}

std::string CallPlace(CallKind kind, int64_t call_number) {
  return absl::StrCat(CallName(kind), " (call ", call_number, ")");
}

absl::Status MissingRanks(const std::string& where, std::span<const int32_t> missing,
                          absl::Duration waited) {
  const absl::Status error = absl::DeadlineExceededError(absl::StrCat(
      where, ": ", missing.size() == 1 ? "rank " : "ranks ", absl::StrJoin(missing, ", "),
      " did not take part within ", absl::FormatDuration(waited)));
  return WithUnreached(error, missing);
}

absl::Status CompareCalls(const std::string& where, int32_t rank_a, const CallHeader& a,
                          int32_t rank_b, const CallHeader& b) {
  if (a.kind != b.kind) {
    return Differ(where, "the call", rank_a, CallName(a.kind), rank_b, CallName(b.kind));
  }
  if (a.root != b.root) {
    return Differ(where, "the root", rank_a, absl::StrCat(a.root), rank_b, absl::StrCat(b.root));
  }
  if (a.op != b.op) return Differ(where, "the op", rank_a, OpName(a.op), rank_b, OpName(b.op));
  if (a.bytes != b.bytes) {
    return Differ(where, "the size", rank_a, absl::StrCat(a.bytes, " bytes"), rank_b,
                  absl::StrCat(b.bytes, " bytes"));
  }
  RETURN_IF_ERROR(CompareBytes(where, rank_a, a.send_bytes, rank_b, b.recv_bytes));
  return CompareBytes(where, rank_b, b.send_bytes, rank_a, a.recv_bytes);
}

absl::Status ValidateRank(const RankInfo& info) {
  if (info.world_size >= 1 && info.rank >= 0 && info.rank < info.world_size) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat("rank must be in [0, world size), given rank ",
                                                 info.rank, " of world size ", info.world_size));
}

absl::Status ValidateAlone(CallKind kind, bool is_under_way) {
  if (!is_under_way) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(CallName(kind), " between StartAllToAll and FinishAllToAll"));
}

absl::Status ValidateFinish(bool is_under_way) {
  if (is_under_way) return absl::OkStatus();
  return absl::InvalidArgumentError("FinishAllToAll without StartAllToAll");
}

absl::Status ValidateAllToAll(const AllToAllArgs& args, int32_t world_size) {
  RETURN_IF_ERROR(
      ValidateRanges("send", args.send, args.send_offsets, args.send_bytes, world_size));
  return ValidateRanges("recv", args.recv, args.recv_offsets, args.recv_bytes, world_size);
}

absl::Status ValidateBytes(CallKind kind, const void* data, int64_t bytes) {
  if (bytes >= 0 && (bytes == 0 || data != nullptr)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(CallName(kind), ": ", bytes, " bytes at ",
                                                 data == nullptr ? "null" : "an address",
                                                 "; bytes must be at least 0"));
}

absl::Status ValidateRoot(int32_t root, int32_t world_size) {
  if (root >= 0 && root < world_size) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("Broadcast: root must be in [0, ", world_size, "), given ", root));
}

void Reduce(ReduceOp op, std::span<int64_t> values, const int64_t* other) {
  for (size_t i = 0; i < values.size(); ++i) {
    switch (op) {
      case ReduceOp::kSum:
        // Through unsigned: a sum that overflows wraps, as it does on a device.
        values[i] = static_cast<int64_t>(static_cast<uint64_t>(values[i]) +
                                         static_cast<uint64_t>(other[i]));
        break;
      case ReduceOp::kMin:
        values[i] = std::min(values[i], other[i]);
        break;
      case ReduceOp::kMax:
        values[i] = std::max(values[i], other[i]);
        break;
    }
  }
}

}  // namespace jevons
