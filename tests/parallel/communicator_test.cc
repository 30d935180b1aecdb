// What arrives: every call at every world size, in any sizes and for a long time.
#include "parallel/communicator.h"

#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "gtest/gtest.h"
#include "tests/parallel/communicator_suite.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

class CommunicatorTest : public testing::TestWithParam<GroupKind> {
 protected:
  void ExpectAllOk(int32_t world_size, const RankFn& fn) {
    const auto results = RunRanks(GetParam(), world_size, {}, fn);
    for (size_t r = 0; r < results.size(); ++r) {
      EXPECT_TRUE(results[r].ok()) << "rank " << r << " of " << world_size << ": " << results[r];
    }
  }

  std::vector<int32_t> WorldSizes() const {
    std::vector<int32_t> sizes;
    for (const int32_t size : {1, 2, 3, 4, 8}) {
      if (size <= GetParam().max_world_size) sizes.push_back(size);
    }
    return sizes;
  }
};

// Byte i of what `from` sends to `to` in a call.
uint8_t DataByte(uint64_t call, int32_t from, int32_t to, int64_t i) {
  return static_cast<uint8_t>((call * 131 + from * 31 + to * 17 + i) * 167 + (i >> 8));
}

std::vector<uint8_t> DataBytes(uint64_t call, int32_t from, int32_t to, int64_t bytes) {
  std::vector<uint8_t> data(bytes);
  for (int64_t i = 0; i < bytes; ++i) data[i] = DataByte(call, from, to, i);
  return data;
}

absl::Status ExpectBytes(const std::vector<uint8_t>& got, const std::vector<uint8_t>& expected,
                         const std::string& what) {
  if (got.size() != expected.size()) {
    return absl::DataLossError(absl::StrCat(what, ": ", got.size(), " bytes"));
  }
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;
    return absl::DataLossError(
        absl::StrCat(what, ": byte ", i, " is ", got[i], ", expected ", expected[i]));
  }
  return absl::OkStatus();
}

// One side of an all-to-all: ranges in a mixed order with gaps between them.
struct Ranges {
  std::vector<int64_t> offsets;
  std::vector<int64_t> bytes;
  int64_t total = 0;

  void Place(Random& random) {
    const int32_t n = static_cast<int32_t>(bytes.size());
    offsets.assign(n, 0);
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    for (int32_t i = n - 1; i > 0; --i) std::swap(order[i], order[random.Below(i + 1)]);
    for (const int32_t r : order) {
      total += random.Below(40);
      offsets[r] = total;
      total += bytes[r];
    }
    total += random.Below(40);
  }
};

using SizeFn = std::function<int64_t(int32_t from, int32_t to)>;

// A rank makes one call or two, whatever the others do.
absl::Status CheckAllToAll(TestGroup& group, Communicator& member, uint64_t call,
                           const SizeFn& size) {
  const RankInfo info = member.info();
  Random random(call * 64 + info.rank);
  Ranges send, recv;
  for (int32_t r = 0; r < info.world_size; ++r) {
    send.bytes.push_back(size(info.rank, r));
    recv.bytes.push_back(size(r, info.rank));
  }
  send.Place(random);
  recv.Place(random);
  std::vector<uint8_t> sent(send.total, 0xEE);
  std::vector<uint8_t> expected(recv.total, 0xFF);  // gaps stay as they were
  for (int32_t r = 0; r < info.world_size; ++r) {
    const auto out = DataBytes(call, info.rank, r, send.bytes[r]);
    std::copy(out.begin(), out.end(), sent.begin() + send.offsets[r]);
    const auto in = DataBytes(call, r, info.rank, recv.bytes[r]);
    std::copy(in.begin(), in.end(), expected.begin() + recv.offsets[r]);
  }
  RankBytes send_buffer(group, info.rank, sent);
  RankBytes recv_buffer(group, info.rank, recv.total);
  const Form form = random.Below(2) == 0 ? Form::kWhole : Form::kHalves;
  RETURN_IF_ERROR(Exchange(member, form,
                           {.send = send_buffer.data(),
                            .send_offsets = send.offsets,
                            .send_bytes = send.bytes,
                            .recv = recv_buffer.data(),
                            .recv_offsets = recv.offsets,
                            .recv_bytes = recv.bytes}));
  RETURN_IF_ERROR(ExpectBytes(send_buffer.Read(), sent, "send buffer"));
  return ExpectBytes(recv_buffer.Read(), expected, absl::StrCat("AllToAll ", call));
}

absl::Status CheckAllGather(TestGroup& group, Communicator& member, uint64_t call, int64_t bytes) {
  const RankInfo info = member.info();
  std::vector<uint8_t> expected;
  for (int32_t r = 0; r < info.world_size; ++r) {
    const auto in = DataBytes(call, r, 0, bytes);
    expected.insert(expected.end(), in.begin(), in.end());
  }
  RankBytes send(group, info.rank, DataBytes(call, info.rank, 0, bytes));
  RankBytes recv(group, info.rank, bytes * info.world_size);
  RETURN_IF_ERROR(Finish(member, member.AllGather(send.data(), bytes, recv.data())));
  return ExpectBytes(recv.Read(), expected, absl::StrCat("AllGather ", call));
}

absl::Status CheckBroadcast(TestGroup& group, Communicator& member, uint64_t call, int64_t bytes,
                            int32_t root) {
  const RankInfo info = member.info();
  RankBytes data(group, info.rank, DataBytes(call, info.rank, 0, bytes));
  RETURN_IF_ERROR(Finish(member, member.Broadcast(data.data(), bytes, root)));
  return ExpectBytes(data.Read(), DataBytes(call, root, 0, bytes),
                     absl::StrCat("Broadcast ", call));
}

absl::Status CheckAllReduce(Communicator& member, uint64_t call, int64_t num_values, ReduceOp op) {
  const RankInfo info = member.info();
  const auto value = [&](int32_t rank, int64_t i) {
    return static_cast<int64_t>(RandomBits(call, rank * 10'000 + i)) >> 8;
  };
  std::vector<int64_t> values(num_values), expected(num_values);
  for (int64_t i = 0; i < num_values; ++i) {
    values[i] = value(info.rank, i);
    expected[i] = value(0, i);
    for (int32_t r = 1; r < info.world_size; ++r) {
      const int64_t other = value(r, i);
      if (op == ReduceOp::kSum) expected[i] += other;
      if (op == ReduceOp::kMin) expected[i] = std::min(expected[i], other);
      if (op == ReduceOp::kMax) expected[i] = std::max(expected[i], other);
    }
  }
  RETURN_IF_ERROR(member.AllReduce(std::span(values), op));
  if (values == expected) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("AllReduce ", call, " of ", num_values, " values"));
}

TEST_P(CommunicatorTest, InfoIsWhatTheGroupWasMadeWith) {
  ExpectAllOk(2, [](int32_t rank, TestGroup&, Communicator& member) {
    EXPECT_EQ(member.info().rank, rank);
    EXPECT_EQ(member.info().world_size, 2);
    EXPECT_FALSE(member.Description().empty());
    return member.Barrier(absl::Seconds(30));
  });
}

TEST_P(CommunicatorTest, EveryCallAtEveryWorldSize) {
  for (const int32_t world_size : WorldSizes()) {
    ExpectAllOk(world_size, [&](int32_t rank, TestGroup& group, Communicator& member) {
      for (const int64_t bytes : {0, 1, 8, 5000, 32'767, 32'768, 32'769, 300'000}) {
        RETURN_IF_ERROR(
            CheckAllToAll(group, member, bytes, [&](int32_t, int32_t) { return bytes; }));
        RETURN_IF_ERROR(CheckAllGather(group, member, bytes, bytes));
        for (int32_t root = 0; root < world_size; ++root) {
          RETURN_IF_ERROR(CheckBroadcast(group, member, bytes, bytes, root));
        }
      }
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMin, ReduceOp::kMax}) {
        for (const int64_t num_values : {0, 1, 7, 900, 5000}) {
          RETURN_IF_ERROR(CheckAllReduce(member, num_values, num_values, op));
        }
      }
      return member.Barrier(absl::Seconds(30));
    });
  }
}

TEST_P(CommunicatorTest, RaggedRangesArriveAndGapsStayUntouched) {
  for (const int32_t world_size : WorldSizes()) {
    ExpectAllOk(world_size, [&](int32_t rank, TestGroup& group, Communicator& member) {
      for (uint64_t call = 0; call < 40; ++call) {
        // A third is empty; few are large; one rank may get all or nothing.
        const auto size = [&](int32_t from, int32_t to) -> int64_t {
          const uint64_t bits = RandomBits(call, from * 100 + to);
          if (bits % 3 == 0) return 0;
          return (bits >> 8) % (bits % 5 == 0 ? 200'000 : 700);
        };
        RETURN_IF_ERROR(CheckAllToAll(group, member, call, size));
      }
      return absl::OkStatus();
    });
  }
}

TEST_P(CommunicatorTest, ThousandsOfRandomCallsStayInOrder) {
  const int32_t num_calls = GetParam().num_random_calls;
  ExpectAllOk(3, [&](int32_t rank, TestGroup& group, Communicator& member) -> absl::Status {
    Random random(20250817);  // the same on each rank
    for (int32_t call = 0; call < num_calls; ++call) {
      const int64_t limit = random.Below(50) == 0 ? 100'000 : 600;
      const int64_t bytes = random.Below(limit);
      switch (random.Below(5)) {
        case 0:
          RETURN_IF_ERROR(CheckAllToAll(group, member, call, [&](int32_t from, int32_t to) {
            return static_cast<int64_t>(RandomBits(call, from * 8 + to) % limit);
          }));
          break;
        case 1:
          RETURN_IF_ERROR(CheckAllGather(group, member, call, bytes));
          break;
        case 2:
          RETURN_IF_ERROR(CheckBroadcast(group, member, call, bytes, call % 3));
          break;
        case 3:
          RETURN_IF_ERROR(
              CheckAllReduce(member, call, bytes % 100, static_cast<ReduceOp>(call % 3)));
          break;
        default:
          RETURN_IF_ERROR(member.Barrier(absl::Seconds(30)));
      }
    }
    return absl::OkStatus();
  });
}

INSTANTIATE_TEST_SUITE_P(Over, CommunicatorTest, testing::ValuesIn(GroupKinds()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace jevons
