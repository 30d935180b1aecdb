// Engines whose ranks have an emulated device each and exchange over the emulated NCCL.
#include <map>
#include <thread>
#include <vector>

#include "base/random.h"
#include "engine/engine_group.h"
#include "tests/cuda_emu/cublaslt_plan.h"
#include "tests/cuda_emu/nccl_plan.h"
#include "tests/cuda_emu/tests/emu_test.h"
#include "tests/support/engine_run.h"
#include "tests/support/shared_checkpoint.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

using absl::StatusCode;
using emu::CallKind;

// Experts that all tokens want where a test is about load: half of them, all on the first rank.
constexpr int32_t kNumWanted = 6;

ModelConfig SmallConfig() {
  ModelConfig config = TinyV3Config();
  config.num_hidden_layers = 2;
  return config;
}

EngineOptions Options(int32_t num_ranks) {
  EngineOptions options;
  options.backend = BackendKind::kCuda;
  options.num_ranks = num_ranks;
  options.rank_transport = RankTransport::kNccl;
  options.kv_cache_tokens = 512;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 12;
  options.max_model_len = 256;
  return options;
}

std::vector<GenerationRequest> MakeRequests(int count, int num_new_tokens) {
  Random random(23);
  std::vector<GenerationRequest> out;
  for (int i = 0; i < count; ++i) {
    out.push_back(RandomRequest(i, 2 + 7 * i, num_new_tokens, random));
  }
  return out;
}

// Every test ends with nothing of the runtime or of NCCL left.
class DeviceRanksTest : public emu::EmuTest {
 protected:
  static constexpr int kNumDevices = 4;

  DeviceRanksTest() {
    emu::SetDevice({.count = kNumDevices});
    emu::ResetNccl();
    emu::ResetCalls();
  }
  ~DeviceRanksTest() override {
    EXPECT_EQ(emu::OutstandingCommunicators(), 0);
    emu::ResetNccl();
    emu::ResetCalls();
  }

  static absl::StatusOr<LoadedGroup> Load(const EngineOptions& options, int32_t num_wanted = 0) {
    return LoadModelGroup(options, SmallConfig(), SharedCheckpoint(SmallConfig(), num_wanted));
  }
  std::unique_ptr<Engine> Start(const EngineOptions& options, int32_t num_wanted = 0) {
    auto group = Load(options, num_wanted);
    EXPECT_TRUE(group.ok()) << group.status();
    return StartEngine(*std::move(group), &clock_);
  }
  std::vector<Outcome> RunOnOneRank(const std::vector<GenerationRequest>& requests,
                                    int32_t num_wanted = 0) {
    auto model = LoadModel(Options(1), SmallConfig(),
                           SkewedCheckpoint(SmallConfig(), 7, num_wanted), nullptr, nullptr);
    EXPECT_TRUE(model.ok()) << model.status();
    return RunTogether(*StartEngine(*std::move(model), &clock_), requests);
  }

  RealClock clock_;
};

// Steps with and without capacity, ranks without a request, prompts in one piece and in many.
TEST_F(DeviceRanksTest, GiveTheBytesOfOneRank) {
  const std::vector<GenerationRequest> requests = MakeRequests(5, 6);
  const std::vector<Outcome> want = RunOnOneRank(requests);
  for (int32_t chunk : {0, 3}) {
    SCOPED_TRACE(chunk);
    EngineOptions options = Options(2);
    options.max_prefill_chunk_tokens = chunk;
    options.num_redundant_experts = chunk;
    options.exchange_by = chunk == 0 ? ExchangeBy::kCalls : ExchangeBy::kKernels;
    const auto group = Start(options);
    const std::vector<Outcome> got = RunTogether(*group, requests);
    for (size_t i = 0; i < want.size(); ++i) {
      SCOPED_TRACE(i);
      ASSERT_TRUE(want[i].end.error.ok()) << want[i].end.error;
      ExpectSame(got[i], want[i]);
    }
    ExpectSame(RunTogether(*group, {requests[2]})[0], want[2]);
    EXPECT_TRUE(group->CheckIntegrity().ok());
    EXPECT_EQ(group->stats().num_free_blocks, group->stats().num_blocks);
    EXPECT_NE(group->backend_description().find("2 ranks over nccl"), std::string::npos)
        << group->backend_description();
    group->Drain(absl::Seconds(30));
    EXPECT_TRUE(group->failure().ok()) << group->failure();
  }
}

// Its products are beside exchanges in recorded steps. What packs experts that move has no use for it.
TEST_F(DeviceRanksTest, EachRankHasACublasLtOfItsOwn) {
  emu::ResetCublasLt();
  EngineOptions options = Options(2);
  options.cublaslt_rows = 4;
  {
    const auto group = Start(options);
    EXPECT_EQ(emu::OutstandingCublasLt(), 2);
    EXPECT_GT(emu::NumCublasLtProducts(), 0);
    for (const Outcome& outcome : RunTogether(*group, MakeRequests(3, 3))) {
      EXPECT_TRUE(outcome.end.error.ok()) << outcome.end.error;
      EXPECT_EQ(outcome.ids.size(), 3);
    }
  }
  EXPECT_EQ(emu::OutstandingCublasLt(), 0);
}

TEST_F(DeviceRanksTest, ExpertsMoveUnderwayAndTheBytesStay) {
  const std::vector<GenerationRequest> requests = MakeRequests(4, 30);
  const std::vector<Outcome> want = RunOnOneRank(requests, kNumWanted);
  EngineOptions options = Options(2);
  options.num_redundant_experts = 4;
  options.balance_interval_steps = 5;
  auto loaded = Load(options, kNumWanted);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  for (LoadedModel& model : loaded->models) {
    model.reopen = []() -> absl::StatusOr<std::unique_ptr<Checkpoint>> {
      return std::make_unique<SkewedCheckpoint>(SmallConfig(), 7, kNumWanted);
    };
  }
  const auto group = StartEngine(*std::move(loaded), &clock_);
  // One more round runs with the MoE layer moved.
  bool moved = false;
  for (int round = 0; round < 20 && !moved; ++round) {
    moved = group->stats().num_moved_layers > 0;
    const std::vector<Outcome> got = RunTogether(*group, requests);
    for (size_t i = 0; i < want.size(); ++i) ExpectSame(got[i], want[i]);
  }
  EXPECT_TRUE(moved);
}

// What breaks a group that serves, and a part of the reason that every stream gets.
struct Breakage {
  std::string name;
  void (*happens)(Communicator& second);
  std::string reason;
};

class BrokenDeviceRanksTest : public DeviceRanksTest,
                              public testing::WithParamInterface<Breakage> {};

TEST_P(BrokenDeviceRanksTest, EndEveryStreamWithTheReason) {
  auto loaded = Load(Options(3));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  Communicator& second = *loaded->models[1].communicator;
  auto group = StartEngine(*std::move(loaded), &clock_);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const GenerationRequest& request : MakeRequests(4, 200)) {
    auto stream = group->Submit(request);
    ASSERT_TRUE(stream.ok()) << stream.status();
    streams.push_back(*stream);
  }
  while (group->stats().num_new_tokens < 8) absl::SleepFor(absl::Milliseconds(1));
  GetParam().happens(second);
  for (auto& stream : streams) {
    ExpectError(ReadAll(*stream).end.error, StatusCode::kUnavailable, {GetParam().reason});
  }
  ExpectError(group->failure(), StatusCode::kUnavailable, {GetParam().reason});
  ExpectError(group->Submit(MakeRequests(1, 1)[0]).status(), StatusCode::kUnavailable,
              {GetParam().reason});
  // A device that has failed takes nothing back.
  group = nullptr;
  emu::ResetCalls();
  for (int device = 0; device < kNumDevices; ++device) {
    cudaSetDevice(device);
    cudaDeviceReset();
  }
  cudaSetDevice(0);
}

const Breakage kBreakages[] = {
    {"Abort", [](Communicator& second) { second.Abort("its machine burns"); }, "its machine burns"},
    {"Device",
     [](Communicator&) { emu::FailNth(CallKind::kExecution, 40, cudaErrorIllegalAddress); },
     "illegal memory access"},
    {"Link", [](Communicator&) { emu::FailNthMeeting(40, ncclRemoteError); },
     "remote process exited"},
};

INSTANTIATE_TEST_SUITE_P(By, BrokenDeviceRanksTest, testing::ValuesIn(kBreakages),
                         [](const auto& info) { return info.param.name; });

TEST_F(DeviceRanksTest, ARankThatCannotLoadIsNamedAndNoneWaitsForIt) {
  emu::ResetCalls();
  ASSERT_TRUE(Load(Options(2)).ok());
  const int64_t num_calls = emu::NumCalls(CallKind::kAllocation);
  ASSERT_GT(num_calls, 0);
  // Some of them in each phase: communicators, weights, runner, warm-up, packer.
  EngineOptions options = Options(2);
  for (int64_t n = 1; n <= num_calls; n += num_calls / 7) {
    SCOPED_TRACE(n);
    emu::ResetCalls();
    emu::FailNth(CallKind::kAllocation, n, cudaErrorMemoryAllocation);
    options.exchange_by = n % 2 == 0 ? ExchangeBy::kKernels : ExchangeBy::kCalls;
    const absl::Status status = Load(options).status();
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(status.message().substr(0, 5), "rank ") << status;
    emu::ResetCalls();
    ASSERT_EQ(emu::OutstandingObjects().total(), 0);
    ASSERT_EQ(emu::OutstandingCommunicators(), 0);
  }
}

TEST_F(DeviceRanksTest, FewerDevicesThanRanksAreRefusedWithBothNumbers) {
  ExpectError(Load(Options(5)).status(), StatusCode::kFailedPrecondition,
              {"5 ranks over nccl need a GPU each, found 4"});
  emu::SetDevice({.count = 0});
  ExpectError(Load(Options(2)).status(), StatusCode::kFailedPrecondition,
              {"2 ranks over nccl need a GPU each, found 0"});
}

TEST_F(DeviceRanksTest, BackendAndTransportMustFit) {
  EngineOptions options = Options(2);
  options.backend = BackendKind::kCpu;
  ExpectError(Load(options).status(), StatusCode::kInvalidArgument,
              {"transport nccl joins GPUs", "cpu"});
  options.backend = BackendKind::kCuda;
  options.rank_transport = RankTransport::kThreads;
  ExpectError(Load(options).status(), StatusCode::kInvalidArgument,
              {"2 ranks with backend cuda need transport nccl or processes, given threads"});
  options.backend = BackendKind::kCpu;
  options.exchange_by = ExchangeBy::kKernels;
  ExpectError(Load(options).status(), StatusCode::kInvalidArgument,
              {"exchange-by kernels is for ranks on GPUs"});
}

}  // namespace
}  // namespace jevons
