// What implementations of Communicator check alike: a rank's arguments, and the calls of two ranks
// against each other.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "parallel/communicator.h"

namespace jevons {

enum class CallKind : int32_t { kAllToAll, kAllGather, kBroadcast, kAllReduce, kBarrier };
const char* CallName(CallKind kind);

// What one rank says of its call to another. Goes over the wire as it is.
struct CallHeader {
  CallKind kind = CallKind::kBarrier;
  int32_t root = 0;
  ReduceOp op = ReduceOp::kSum;
  int32_t unused = 0;
  int64_t bytes = 0;       // of the call: AllGather, Broadcast, AllReduce
  int64_t send_bytes = 0;  // to the other rank
  int64_t recv_bytes = 0;  // from the other rank
};

// "AllToAll (call 7)"
std::string CallPlace(CallKind kind, int64_t call_number);
// DEADLINE_EXCEEDED that names who did not come, also as UnreachedRanks.
absl::Status MissingRanks(const std::string& where, std::span<const int32_t> missing,
                          absl::Duration waited);

// INVALID_ARGUMENT names both ranks and what they said where the calls do not fit together.
absl::Status CompareCalls(const std::string& where, int32_t rank_a, const CallHeader& a,
                          int32_t rank_b, const CallHeader& b);

absl::Status ValidateRank(const RankInfo& info);
// Of a call that is none of the halves: none may be made while an exchange is under way.
absl::Status ValidateAlone(CallKind kind, bool is_under_way);
absl::Status ValidateFinish(bool is_under_way);
absl::Status ValidateAllToAll(const AllToAllArgs& args, int32_t world_size);
absl::Status ValidateBytes(CallKind kind, const void* data, int64_t bytes);
absl::Status ValidateRoot(int32_t root, int32_t world_size);

// values[i] = op(values[i], other[i])
void Reduce(ReduceOp op, std::span<int64_t> values, const int64_t* other);

}  // namespace jevons
