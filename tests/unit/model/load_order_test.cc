// What a loader fetches ahead is what it reads.
#include <set>

#include "model/model_weights.h"
#include "model/tensor_specs.h"
#include "tests/support/tiny_model.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

// Random weights that are found when they were fetched. Thread-safe where that is needed.
class FetchedCheckpoint : public RandomCheckpoint {
 public:
  using RandomCheckpoint::RandomCheckpoint;

  absl::StatusOr<TensorView> Find(std::string_view name) const override {
    // The last, after the window.
    const bool is_fetched = name != "model.norm.weight";
    if (is_fetched) WaitFor([&] { return fetched().contains(std::string(name)); });
    found_.emplace(name);
    return RandomCheckpoint::Find(name);
  }
  void Fetch(std::string_view name) const override {
    MutexLock lock(&mutex_);
    fetched_.emplace(name);
  }

  std::set<std::string> fetched() const {
    MutexLock lock(&mutex_);
    return fetched_;
  }
  std::set<std::string> found() const {
    std::set<std::string> out = found_;
    out.erase("model.norm.weight");
    return out;
  }

 private:
  mutable std::set<std::string> found_;
  mutable Mutex mutex_;
  mutable std::set<std::string> fetched_ ABSL_GUARDED_BY(mutex_);
};

using Experts = std::vector<std::vector<int32_t>>;

void ExpectFetchesWhatItReads(const ModelConfig& config, const Experts& experts) {
  const FetchedCheckpoint checkpoint(config, 3);
  const auto backend = MakeTestBackend();
  const auto weights = LoadModelWeights(config, checkpoint, *backend, experts);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(checkpoint.fetched(), checkpoint.found());
}

TEST(LoadOrderTest, EverythingIsFetchedBeforeItIsReadAndNothingElseIs) {
  SKIP_WITHOUT_TEST_BACKEND();
  ExpectFetchesWhatItReads(TinyV2Config(), {});
  ExpectFetchesWhatItReads(TinyV3Config(), {});
  ModelConfig tied = TinyV3Config();
  tied.tie_word_embeddings = true;
  ExpectFetchesWhatItReads(tied, Experts(tied.num_hidden_layers, {5, 0, 3}));
}

TEST(LoadOrderTest, SoAreTheExpertsOfOneLayer) {
  SKIP_WITHOUT_TEST_BACKEND();
  const ModelConfig config = TinyV3Config();
  const FetchedCheckpoint checkpoint(config, 3);
  const auto backend = MakeTestBackend();
  const std::vector<int32_t> experts = {7, 2};
  const auto weights =
      LoadExpertWeights(config, checkpoint, *backend, 1, experts, ActivationPrecision::kExact);
  ASSERT_TRUE(weights.ok()) << weights.status();
  for (const std::string& name : checkpoint.fetched()) {
    EXPECT_TRUE(checkpoint.found().contains(name)) << name;
  }
  EXPECT_EQ(checkpoint.fetched().size(), 6u);
}

}  // namespace
}  // namespace jevons
