// Cases from the field that need a whole group of processes: idle ranks, long requests beside short
// ones, and tokens that all want the experts of one rank.
#include <algorithm>

#include "gmock/gmock.h"
#include "tests/e2e/rank_group.h"

namespace jevons {
namespace {

// A random model for `changes` of TinyConfigJson; with a bias, the second half of the experts, which
// are those of rank 1 of 2, is what all tokens want.
class ModelFolder {
 public:
  explicit ModelFolder(nlohmann::json changes, float bias = 0) {
    changes["max_position_embeddings"] = 60000;
    const nlohmann::json json = TinyConfigJson("deepseek_v3", changes);
    const auto config = ParseModelConfig(json.dump(), "");
    EXPECT_TRUE(config.ok()) << config.status();
    if (!config.ok()) return;
    WriteFile(folder_.Path("config.json"), json.dump());
    CheckpointWriter tensors = RandomTensors(*config, 5);
    std::vector<float> biases(config->n_routed_experts, 0.0f);
    std::fill(biases.begin() + config->n_routed_experts / 2, biases.end(), bias);
    for (const std::string& name : tensors.Names()) {
      if (bias == 0 || name.find("e_score_correction_bias") == std::string::npos) continue;
      tensors.AddF32(name, {config->n_routed_experts}, biases);
    }
    tensors.WriteSingle(folder_.path());
  }
  const std::string& path() const { return folder_.path(); }

 private:
  TempFolder folder_;
};

std::vector<Generation> AnswersAlone(const std::string& model,
                                     const std::vector<v1::GenerateRequest>& requests,
                                     const Arguments& flags = {}) {
  RankServer alone(ServeArguments(model, 1, flags));
  EXPECT_TRUE(alone.ok());
  if (!alone.ok()) return {};
  return GenerateTogether(alone.client(), requests);
}

void ExpectAnswers(RankServer& group, const std::vector<v1::GenerateRequest>& requests,
                   const std::vector<Generation>& want) {
  ASSERT_EQ(want.size(), requests.size());
  const std::vector<Generation> got = GenerateTogether(group.client(), requests);
  for (size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(want[i].status.ok()) << want[i].status;
    ExpectSameGeneration(got[i], want[i]);
  }
}

std::vector<pid_t> Processes(RankServer& group) {
  std::vector<pid_t> out = {group.process().pid()};
  for (const auto& [rank, pid] : group.ranks()) out.push_back(pid);
  return out;
}

class H1IdleRanks : public testing::TestWithParam<bool> {
 protected:
  static nlohmann::json Changes() {
    // Without an expert, ranks share nothing but the steps.
    if (GetParam())
      return {{"n_routed_experts", 0},
              {"n_shared_experts", 0},
              {"num_experts_per_tok", 0},
              {"first_k_dense_replace", 2}};
    return nlohmann::json::object();
  }
  const ModelFolder model_{Changes()};
};

TEST_P(H1IdleRanks, OneThen128WithALongOneThenSilenceThenOneAgain) {
  std::vector<v1::GenerateRequest> requests;
  for (int i = 0; i < 128; ++i) requests.push_back(TinyRequest(i % 16, i == 17 ? 80 : 8));
  const std::vector<Generation> want = AnswersAlone(model_.path(), requests);
  RankServer group(ServeArguments(model_.path(), 2));
  ASSERT_TRUE(group.ok());
  ExpectAnswers(group, {requests[0]}, {want[0]});
  ExpectAnswers(group, requests, want);

  const std::vector<pid_t> processes = Processes(group);
  const auto cpu = [&] {
    double seconds = 0;
    for (const pid_t pid : processes) seconds += ProcCpuSeconds(pid);
    return seconds;
  };
  constexpr double kSilence = 8;
  const double before = cpu();
  absl::SleepFor(absl::Seconds(kSilence));
  EXPECT_LT((cpu() - before) / kSilence, 0.02);
  ExpectAnswers(group, {requests[1]}, {want[1]});
}

TEST_P(H1IdleRanks, FourRanksWithThreeRequests) {
  const std::vector<v1::GenerateRequest> requests = {TinyRequest(0, 40), TinyRequest(1, 4),
                                                     TinyRequest(2, 90)};
  const std::vector<Generation> want = AnswersAlone(model_.path(), requests);
  RankServer group(ServeArguments(model_.path(), 4));
  ASSERT_TRUE(group.ok());
  ExpectAnswers(group, requests, want);
}

INSTANTIATE_TEST_SUITE_P(Models, H1IdleRanks, testing::Bool(),
                         [](const auto& info) { return info.param ? "dense" : "moe"; });

v1::GenerateRequest LongPrompt(int num_tokens, int step) {
  v1::GenerateRequest out;
  for (int i = 0; i < num_tokens; ++i) out.mutable_token_ids()->add_ids(2 + (i * step) % 60);
  out.set_max_tokens(4);
  out.set_ignore_eos(true);
  out.set_return_token_ids(true);
  out.set_logprobs(3);
  out.mutable_sampling()->set_temperature(0);
  return out;
}

#ifdef __SANITIZE_ADDRESS__
constexpr int64_t kMaxGrowthKib = 512 << 10;  // the sanitizer holds freed memory back
#else
constexpr int64_t kMaxGrowthKib = 16 << 10;
#endif

// In KiB: what the process had in memory at most.
int64_t PeakMemory(pid_t pid) { return ProcStatus(pid, "VmHWM:"); }

TEST(H3SkewedRanks, AllTokensMayWantTheExpertsOfOneRank) {
  const ModelFolder model({}, 1000);
  const Arguments flags = {"--kv-cache-tokens", "8192"};
  // A full batch on one rank beside a token on the other; one sequence more than run at the same time
  // on both; a prompt of one word.
  const std::vector<v1::GenerateRequest> uneven = {LongPrompt(512, 7), LongPrompt(1, 7)};
  std::vector<v1::GenerateRequest> many;
  for (int i = 0; i < 2 * 8 + 1; ++i) many.push_back(TinyRequest(i % 8, 12));
  const std::vector<v1::GenerateRequest> one_word = {LongPrompt(4000, 0)};

  RankServer group(ServeArguments(model.path(), 2, flags));
  ASSERT_TRUE(group.ok());
  const std::vector<v1::GenerateRequest> first = {TinyRequest(1, 4)};
  ExpectAnswers(group, first, AnswersAlone(model.path(), first, flags));
  std::vector<int64_t> before;
  for (const pid_t pid : Processes(group)) before.push_back(PeakMemory(pid));
  for (const auto& requests : {uneven, many, one_word}) {
    ExpectAnswers(group, requests, AnswersAlone(model.path(), requests, flags));
  }
  // Room for the worst case was taken before; what may come are pages that were not touched yet, and
  // threads of the connections.
  for (size_t i = 0; i < before.size(); ++i) {
    const int64_t after = PeakMemory(Processes(group)[i]);
    ASSERT_GT(before[i], 0);
    RecordProperty(absl::StrCat("rank_", i, "_kib"), absl::StrCat(before[i], " then ", after));
    EXPECT_LT(after, before[i] + kMaxGrowthKib) << "rank " << i << ", KiB";
  }
}

}  // namespace
}  // namespace jevons
