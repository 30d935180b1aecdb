// What a rank that fails means for the others. NcclFaultTest has the like for devices.
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "model/model_runner.h"
#include "parallel/thread_communicator.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

// One of two ranks.
class TestRank {
 public:
  TestRank(const ModelConfig& config, ThreadGroup& group, int32_t rank)
      : config_(config),
        checkpoint_(config, 3),
        maps_(*EvenMaps(config, 2, 0)),
        member_(*group.Join(rank)) {
    for (const ExpertMap& map : maps_) {
      experts_.emplace_back(map.experts_of_rank(rank).begin(), map.experts_of_rank(rank).end());
    }
    weights_ = LoadWeights();
  }

  ModelWeights& weights() { return weights_; }  // of the next Run

  ModelWeights LoadWeights() {
    auto loaded = LoadModelWeights(config_, checkpoint_, *backend_, experts_);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *std::move(loaded);
  }

  // A step without tokens.
  absl::Status Run() {
    auto runner = ModelRunner::Create(config_, std::move(weights_), backend_.get(),
                                      {.max_tokens = 4,
                                       .max_num_seqs = 1,
                                       .max_positions = 64,
                                       .max_logits_rows = 4,
                                       .num_blocks = 1,
                                       .num_ranks = 2,
                                       .slots_per_rank = maps_[0].slots_per_rank(),
                                       .exchange_overlap = ExchangeOverlap::kShared},
                                      {member_.get(), maps_});
    RETURN_IF_ERROR(runner.status());
    const std::vector<int32_t> no_queries = {0};
    return (*runner)->Run({.cu_seqlens_q = no_queries});
  }

 private:
  const ModelConfig config_;
  const RandomCheckpoint checkpoint_;
  const std::vector<ExpertMap> maps_;
  std::vector<std::vector<int32_t>> experts_;
  const std::unique_ptr<Communicator> member_;
  const std::unique_ptr<Backend> backend_ = MakeTestBackend();
  ModelWeights weights_;
};

class ExpertFailureTest : public testing::TestWithParam<ModelConfig> {};

TEST_P(ExpertFailureTest, ALostRankIsUnavailableWithTheReason) {
  ThreadGroup group(2);
  TestRank first(GetParam(), group, 0);
  const auto second = *group.Join(1);
  second->Abort("the other one went away");
  const absl::Status status = first.Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "exchange of counts between ranks: the other one went away");
}

// The runner goes right after the step, and its memory with it.
TEST_P(ExpertFailureTest, AnOpThatFailsWhileTokensAreOnTheirWayEndsTheExchangeForAll) {
  ThreadGroup group(2);
  TestRank good(GetParam(), group, 0);
  TestRank bad(GetParam(), group, 1);
  const size_t first_moe = static_cast<size_t>(GetParam().first_k_dense_replace);
  ASSERT_GT(first_moe, 0u);
  bad.weights().layers[first_moe].moe.shared.gate_up =
      std::move(bad.LoadWeights().layers[0].dense.gate_up);
  absl::Status of_bad;
  std::thread thread([&] { of_bad = bad.Run(); });
  const absl::Status of_good = good.Run();
  thread.join();
  EXPECT_EQ(of_bad.code(), absl::StatusCode::kInvalidArgument) << of_bad;
  EXPECT_EQ(of_good.code(), absl::StatusCode::kUnavailable) << of_good;
  EXPECT_NE(of_good.message().find(of_bad.message()), absl::string_view::npos) << of_good;
}

INSTANTIATE_TEST_SUITE_P(V2AndV3, ExpertFailureTest,
                         testing::Values(TinyV2Config(), TinyV3Config()),
                         [](const auto& info) { return info.param.model_type; });

}  // namespace
}  // namespace jevons
