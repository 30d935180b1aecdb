// The contract of Communicator as tests that every implementation passes. A binary compiles the
// sources of JEVONS_COMMUNICATOR_TESTS and defines GroupKinds(): what they run over.
#pragma once

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "parallel/communicator.h"

namespace jevons {

// One group under test, and the data memory of its ranks.
class TestGroup {
 public:
  virtual ~TestGroup() = default;  // after its members

  // This rank's member. Each rank's own thread calls it once, all at the same time.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Join(int32_t rank) = 0;

  // Memory for the data of AllToAll, AllGather and Broadcast. All of it is called by the rank's own
  // thread. Copy goes either way between host and data, after what the rank has queued, and returns
  // when it is done.
  virtual void* Allocate(int32_t rank, int64_t bytes) { return std::malloc(bytes); }
  virtual void Free(int32_t rank, void* data) { std::free(data); }
  virtual void Copy(int32_t rank, void* to, const void* from, int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
};

// An implementation of Communicator.
struct GroupKind {
  std::string name;
  std::function<std::unique_ptr<TestGroup>(int32_t world_size, const CommunicatorOptions&)> make;
  bool compares_calls = true;      // calls or sizes that differ between ranks are INVALID_ARGUMENT
  bool names_missing_rank = true;  // DEADLINE_EXCEEDED says which rank did not take part
  bool start_waits = false;        // StartAllToAll waits for the other ranks
  int32_t max_world_size = 8;
  int32_t num_random_calls = 10'000;
};

inline void PrintTo(const GroupKind& kind, std::ostream* out) { *out << kind.name; }

// Defined by the binary.
std::vector<GroupKind> GroupKinds();

// What a rank's thread does with its member.
using RankFn = std::function<absl::Status(int32_t rank, TestGroup& group, Communicator& member)>;

// Makes a group, runs `fn` on a thread for each rank, and returns what came of each: the error of
// Join or the status of `fn`. A rank's member is gone when its `fn` has returned, so a rank that is
// to stay must wait.
std::vector<absl::Status> RunRanks(const GroupKind& kind, int32_t world_size,
                                   const CommunicatorOptions& options, const RankFn& fn);

// `status`, or what Wait says if it is OK: calls on a device fail late.
inline absl::Status Finish(Communicator& member, const absl::Status& status) {
  return status.ok() ? member.Wait() : status;
}

// An exchange as one call or as two.
enum class Form { kWhole, kHalves };
inline absl::Status Exchange(Communicator& member, Form form, const AllToAllArgs& args) {
  if (form == Form::kWhole) return Finish(member, member.AllToAll(args));
  RETURN_IF_ERROR(member.StartAllToAll(args));
  return Finish(member, member.FinishAllToAll());
}

// Bytes in a rank's data memory. Starts as 0xFF.
class RankBytes {
 public:
  RankBytes(TestGroup& group, int32_t rank, int64_t bytes)
      : group_(group), rank_(rank), bytes_(bytes), data_(group.Allocate(rank, bytes + 1)) {
    Write(std::vector<uint8_t>(bytes, 0xFF));
  }
  RankBytes(TestGroup& group, int32_t rank, const std::vector<uint8_t>& values)
      : RankBytes(group, rank, static_cast<int64_t>(values.size())) {
    Write(values);
  }
  ~RankBytes() { group_.Free(rank_, data_); }
  RankBytes(const RankBytes&) = delete;
  RankBytes& operator=(const RankBytes&) = delete;

  void* data() { return data_; }
  void Write(const std::vector<uint8_t>& values) {
    group_.Copy(rank_, data_, values.data(), static_cast<int64_t>(values.size()));
  }
  std::vector<uint8_t> Read() const {
    std::vector<uint8_t> values(bytes_);
    group_.Copy(rank_, values.data(), data_, bytes_);
    return values;
  }

 private:
  TestGroup& group_;
  int32_t rank_;
  int64_t bytes_;
  void* data_;
};

}  // namespace jevons
