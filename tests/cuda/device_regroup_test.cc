// Ranks as processes would be, with an emulated device each: host memory over Gloo on the loopback
// device, data over the emulated NCCL. What the group loses is not seen at any stream.
#include <map>
#include <thread>
#include <vector>

#include "engine/process_rank.h"
#include "gmock/gmock.h"
#include "parallel/gloo_communicator.h"
#include "tests/cuda_emu/nccl_plan.h"
#include "tests/cuda_emu/tests/emu_test.h"
#include "tests/parallel/free_address.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/regroup_ranks.h"
#include "tests/support/shared_checkpoint.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

using absl::StatusCode;
using emu::CallKind;
using testing::StartsWith;
using Ranks = RegroupRanks;

// Experts that all tokens want: half of them, so that some move.
constexpr int32_t kNumWanted = 6;

ModelConfig SmallConfig() {
  ModelConfig config = TinyV3Config();
  config.num_hidden_layers = 2;
  return config;
}

// Steps of at most 4 tokens a rank have a fixed number of rows and are recorded, larger ones are not.
EngineOptions Options(int32_t num_ranks, int32_t num_redundant_experts = 0) {
  EngineOptions options;
  options.backend = BackendKind::kCuda;
  options.num_ranks = num_ranks;
  options.rank_transport = RankTransport::kProcesses;
  options.num_redundant_experts = num_redundant_experts;
  options.kv_cache_tokens = 256;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 6;
  options.max_model_len = 64;
  return options;
}

std::vector<GenerationRequest> MakeRequests(int count, int num_new_tokens) {
  std::vector<GenerationRequest> out = RandomRequests(count, num_new_tokens);
  for (GenerationRequest& request : out) {
    request.prompt_ids.resize(1 + request.prompt_ids.size() % 8);
  }
  return out;
}

absl::StatusOr<std::unique_ptr<Communicator>> JoinOverGloo(const RankInfo& info,
                                                           const std::string& leader) {
  return CreateGlooCommunicator(
      {.rendezvous = {.info = info, .leader = leader, .timeout = absl::Seconds(20)},
       .communicator = {.timeout = absl::Seconds(20)}});
}

absl::StatusOr<LoadedModel> LoadOne(EngineOptions options, int32_t rank, const std::string& leader,
                                    const Checkpoint& checkpoint) {
  options.device = rank;
  std::unique_ptr<Communicator> host;
  if (options.num_ranks > 1) {
    ASSIGN_OR_RETURN(host, JoinOverGloo({.rank = rank, .world_size = options.num_ranks}, leader));
  }
  return LoadModel(options, SmallConfig(), checkpoint, nullptr, nullptr, std::move(host),
                   absl::Seconds(60));
}

// The first of `some` whose engine fails; -1 where none does.
int32_t AwaitFailure(Ranks& ranks, const std::vector<int32_t>& some) {
  int32_t failed = -1;
  WaitFor([&] {
    for (const int32_t r : some) {
      if (!ranks[r].failure().ok()) failed = r;
    }
    return failed >= 0;
  });
  return failed;
}

std::vector<int32_t> Others(std::vector<int32_t> ranks, int32_t without) {
  std::erase(ranks, without);
  return ranks;
}

// Every test ends with nothing of the runtime or of NCCL left.
class DeviceRegroupTest : public emu::EmuTest {
 protected:
  static constexpr int kNumDevices = 4;

  DeviceRegroupTest() {
    emu::SetDevice({.count = kNumDevices});
    emu::ResetNccl();
    emu::ResetCalls();
  }
  ~DeviceRegroupTest() override {
    EXPECT_EQ(emu::OutstandingCommunicators(), 0);
    emu::ResetNccl();
    emu::ResetCalls();
  }

  static absl::StatusOr<std::unique_ptr<Checkpoint>> Reopen() {
    return std::make_unique<SkewedCheckpoint>(SmallConfig(), 7, kNumWanted);
  }

  std::unique_ptr<Ranks> Start(const EngineOptions& options, const Ranks::Reopen& reopen) {
    const SharedCheckpoint checkpoint(SmallConfig(), kNumWanted);
    const std::string leader = FreeAddress();
    std::vector<absl::StatusOr<LoadedModel>> loaded(options.num_ranks);
    std::vector<std::thread> threads;
    for (int32_t r = 0; r < options.num_ranks; ++r) {
      threads.emplace_back([&, r] { loaded[r] = LoadOne(options, r, leader, checkpoint); });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<LoadedModel> models;
    for (absl::StatusOr<LoadedModel>& model : loaded) {
      EXPECT_TRUE(model.ok()) << model.status();
      if (!model.ok()) return nullptr;
      model->reopen = reopen;
      models.push_back(*std::move(model));
    }
    return std::make_unique<Ranks>(
        std::move(models), &clock_,
        [](int32_t place, const Membership& membership) {
          return JoinOverGloo(
              {.rank = place, .world_size = static_cast<int32_t>(membership.ranks.size())},
              membership.rendezvous);
        },
        FreeAddress);
  }
  std::vector<Outcome> RunOnOneRank(const std::vector<GenerationRequest>& requests) {
    auto model = LoadOne(Options(1), 0, "", SkewedCheckpoint(SmallConfig(), 7, kNumWanted));
    EXPECT_TRUE(model.ok()) << model.status();
    return RunTogether(*StartEngine(*std::move(model), &clock_), requests);
  }

  RealClock clock_;
};

TEST_F(DeviceRegroupTest, NothingIsSeenOfALostRankWhoseExpertsAreReadAgain) {
  const std::vector<GenerationRequest> requests = MakeRequests(4, 16);
  const std::vector<Outcome> want = RunOnOneRank(requests);
  EngineOptions options = Options(3, 3);
  options.balance_interval_steps = 3;
  options.exchange_by = ExchangeBy::kKernels;
  const auto ranks = Start(options, Reopen);
  ASSERT_NE(ranks, nullptr);
  ExpectNothingIsSeenOfLostRanks(*ranks, 3, 2, requests, 4, want);
}

TEST_F(DeviceRegroupTest, NothingIsSeenOfALostRankWhoseExpertsHaveReplicas) {
  const std::vector<GenerationRequest> requests = MakeRequests(3, 12);
  const std::vector<Outcome> want = RunOnOneRank(requests);
  const auto ranks = Start(Options(2, 12), [] { return absl::DataLossError("the disk is gone"); });
  ASSERT_NE(ranks, nullptr);
  ExpectNothingIsSeenOfLostRanks(*ranks, 2, 1, requests, 4, want);
}

// The same ranks, whose connections have broken; one more group before the first has come together.
TEST_F(DeviceRegroupTest, TheSameRanksFormOneGroupAfterTheOther) {
  const std::vector<GenerationRequest> requests = MakeRequests(2, 16);
  const std::vector<Outcome> want = RunOnOneRank(requests);
  EngineOptions options = Options(2);
  options.exchange_by = ExchangeBy::kKernels;
  const auto ranks = Start(options, Reopen);
  ASSERT_NE(ranks, nullptr);
  WatchedRequests watched(*ranks, 2, requests);
  ASSERT_TRUE(watched.WaitForTokens(1, 3));
  ranks->Form("the network blinked");
  ranks->Form("once more");
  ASSERT_TRUE(watched.WaitForTokens(0, 2));
  ranks->Form("and again");
  watched.ExpectTheEndsOf(want);
  ranks->End();
}

TEST_F(DeviceRegroupTest, ARankWhoseDeviceFailsIsLeftBehind) {
  const std::vector<GenerationRequest> requests = MakeRequests(3, 16);
  const std::vector<Outcome> want = RunOnOneRank(requests);
  auto ranks = Start(Options(3), Reopen);
  ASSERT_NE(ranks, nullptr);
  WatchedRequests watched(*ranks, 3, requests);
  ASSERT_TRUE(watched.WaitForTokens(1, 3));
  emu::FailNth(CallKind::kExecution, 10, cudaErrorIllegalAddress);
  const int32_t failed = AwaitFailure(*ranks, {0, 1, 2});
  ASSERT_GE(failed, 0);
  ExpectError((*ranks)[failed].failure(), StatusCode::kUnavailable,
              {"the device failed", "illegal memory access"});
  ranks->LoseRank(failed);
  watched.Inherit(failed, Others({0, 1, 2}, failed));
  watched.ExpectTheEndsOf(want);
  ranks->End();
  ranks = nullptr;
  // A device that has failed takes nothing back.
  emu::ResetCalls();
  for (int device = 0; device < kNumDevices; ++device) {
    cudaSetDevice(device);
    cudaDeviceReset();
  }
  cudaSetDevice(0);
}

TEST_F(DeviceRegroupTest, ARankWithoutRoomBesideTheExpertsOfAnotherIsLeftBehindToo) {
  const std::vector<GenerationRequest> requests = MakeRequests(3, 16);
  const std::vector<Outcome> want = RunOnOneRank(requests);
  const auto ranks = Start(Options(3), Reopen);
  ASSERT_NE(ranks, nullptr);
  WatchedRequests watched(*ranks, 3, requests);
  ASSERT_TRUE(watched.WaitForTokens(2, 3));
  // Two ranks have taken about seven each when they take their caches.
  emu::FailNth(CallKind::kAllocation, 20, cudaErrorMemoryAllocation);
  ranks->LoseRank(2);
  watched.Inherit(2, {0, 1});
  const int32_t failed = AwaitFailure(*ranks, {0, 1});
  ASSERT_GE(failed, 0);
  ExpectError((*ranks)[failed].failure(), StatusCode::kUnavailable,
              {"a cache of 256 tokens does not fit beside the experts of lost ranks, 6 a layer"});
  ranks->LoseRank(failed);
  watched.Inherit(failed, Others({0, 1}, failed));
  watched.ExpectTheEndsOf(want);
  ranks->End();
}

TEST_F(DeviceRegroupTest, WhatRanksMustShareNamesBackendAndArchitecture) {
  const TempFolder model;
  WriteRandomModel(model.path(), TinyConfigJson("deepseek_v3"), 5);
  EngineOptions options = Options(2);
  options.model_folder = model.path();
  const auto facts = GroupFacts(options);
  ASSERT_TRUE(facts.ok()) << facts.status();
  std::map<std::string, std::string> values;
  for (const GroupFact& fact : *facts) values[fact.name] = fact.value;
  EXPECT_EQ(values["the backend"], "cuda");
  EXPECT_THAT(values["the device's architecture"], StartsWith("sm_"));
  options.device = kNumDevices;
  ExpectError(GroupFacts(options).status(), StatusCode::kNotFound,
              {"CUDA device 4 is not there: 4 found"});
}

}  // namespace
}  // namespace jevons
