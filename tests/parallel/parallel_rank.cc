// One rank of a group over Gloo, for tests that kill or stop it:
//   parallel_rank RANK WORLD_SIZE LEADER TIMEOUT_MS BYTES NUM_CALLS
// Exchanges BYTES with each rank, NUM_CALLS times (0: until an error). Prints "running" after the first
// exchange, and at the end "done" or the error.
#include <cstdio>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/check.h"
#include "parallel/gloo_communicator.h"

namespace jevons {
namespace {

int64_t Number(const char* text) {
  int64_t value = -1;
  CHECK(absl::SimpleAtoi(text, &value));
  return value;
}

void Print(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

uint8_t Mark(int64_t call, int32_t from, int32_t to) {
  return static_cast<uint8_t>(call * 7 + from * 3 + to);
}

absl::Status Exchange(Communicator& member, int64_t call, int64_t bytes) {
  const RankInfo info = member.info();
  const std::vector<int64_t> sizes(info.world_size, bytes);
  std::vector<int64_t> offsets;
  std::vector<uint8_t> send, recv(info.world_size * bytes, 0xFF);
  for (int32_t r = 0; r < info.world_size; ++r) {
    offsets.push_back(r * bytes);
    send.insert(send.end(), bytes, Mark(call, info.rank, r));
  }
  RETURN_IF_ERROR(member.AllToAll({.send = send.data(),
                                   .send_offsets = offsets,
                                   .send_bytes = sizes,
                                   .recv = recv.data(),
                                   .recv_offsets = offsets,
                                   .recv_bytes = sizes}));
  for (int32_t r = 0; r < info.world_size; ++r) {
    for (int64_t i = 0; i < bytes; ++i) {
      if (recv[offsets[r] + i] != Mark(call, r, info.rank)) {
        return absl::DataLossError("a byte is not what was sent");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Run(char** argv) {
  const absl::Duration timeout = absl::Milliseconds(Number(argv[4]));
  const int64_t bytes = Number(argv[5]);
  const int64_t num_calls = Number(argv[6]);
  ASSIGN_OR_RETURN(
      const std::unique_ptr<Communicator> member,
      CreateGlooCommunicator(
          {.rendezvous = {.info = {.rank = static_cast<int32_t>(Number(argv[1])),
                                   .world_size = static_cast<int32_t>(Number(argv[2]))},
                          .leader = argv[3],
                          .timeout = absl::Seconds(60)},
           .communicator = {.timeout = timeout}}));
  for (int64_t call = 0; num_calls == 0 || call < num_calls; ++call) {
    RETURN_IF_ERROR(Exchange(*member, call, bytes));
    if (call == 0) Print("running");
  }
  return member->Barrier(timeout);
}

}  // namespace
}  // namespace jevons

int main(int argc, char** argv) {
  CHECK(argc == 7);
  const absl::Status status = jevons::Run(argv);
  jevons::Print(status.ok() ? "done" : status.ToString());
  return 0;
}
