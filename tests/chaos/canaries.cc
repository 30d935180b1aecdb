#include "tests/chaos/canaries.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "tests/e2e/rank_group.h"
#include "tests/support/small_tokenizer.h"

namespace jevons {
namespace {

constexpr int kNumTokens = 258;  // of SmallTokenizerJson
constexpr char kLetters[] = "abcdefghijklmnopqrstuvwxyz";

std::string BytesOf(const std::vector<v1::Logprobs>& logprobs) {
  std::string out;
  for (const v1::Logprobs& entry : logprobs) out += entry.SerializeAsString();
  return out;
}

int DrawLength(Random& random) {
  const int64_t kind = random.Below(10);
  if (kind < 3) return static_cast<int>(1 + random.Below(20));
  if (kind < 8) return static_cast<int>(20 + random.Below(100));
  return static_cast<int>(200 + random.Below(200));
}

void DrawSampling(Random& random, v1::Sampling& sampling) {
  const bool greedy = random.Below(2) == 0;
  sampling.set_temperature(greedy ? 0.0f : static_cast<float>(0.2 + 1.3 * random.Uniform()));
  sampling.set_seed(random.Bits());
  if (random.Below(4) == 0) sampling.set_top_k(static_cast<int32_t>(1 + random.Below(40)));
  if (random.Below(4) == 0) sampling.set_top_p(static_cast<float>(0.5 + 0.5 * random.Uniform()));
}

v1::GenerateRequest DrawRequest(Random& random) {
  v1::GenerateRequest out;
  int64_t prompt = 1 + random.Below(90);
  if (random.Below(5) == 0) prompt = 200 + random.Below(300);
  for (int64_t i = 0; i < prompt; ++i) {
    out.mutable_token_ids()->add_ids(static_cast<int32_t>(random.Below(kNumTokens)));
  }
  out.set_max_tokens(DrawLength(random));
  out.set_ignore_eos(true);
  out.set_return_token_ids(true);
  DrawSampling(random, *out.mutable_sampling());
  if (random.Below(2) == 0) out.set_logprobs(static_cast<int32_t>(random.Below(6)));
  if (random.Below(4) == 0) out.set_prompt_logprobs(static_cast<int32_t>(random.Below(3)));
  if (random.Below(4) != 0) return out;
  // Bytes at random rarely spell more than a letter.
  for (int i = 0; i < 3; ++i) out.add_stop(std::string(1, kLetters[random.Below(26)]));
  return out;
}

}  // namespace

void WriteChaosModel(const std::string& folder, uint64_t seed) {
  WriteRandomModel(folder,
                   TinyConfigJson("deepseek_v3", {{"vocab_size", kNumTokens + 2},
                                                  {"num_hidden_layers", 3},
                                                  {"max_position_embeddings", 16384},
                                                  {"n_routed_experts", 16},
                                                  {"num_experts_per_tok", 4}}),
                   seed);
  WriteFile(folder + "/tokenizer.json", SmallTokenizerJson().dump());
}

std::vector<v1::GenerateRequest> CanaryRequests(uint64_t seed, int count) {
  Random random(seed);
  std::vector<v1::GenerateRequest> out;
  for (int i = 0; i < count; ++i) out.push_back(DrawRequest(random));
  return out;
}

v1::GenerateRequest FillRequest(int kv_cache_tokens) {
  constexpr int kNewTokens = 4;
  v1::GenerateRequest out;
  for (int i = 0; i < kv_cache_tokens - kNewTokens; ++i) {
    out.mutable_token_ids()->add_ids((i * 31 + 7) % kNumTokens);
  }
  out.set_max_tokens(kNewTokens);
  out.set_ignore_eos(true);
  out.set_return_token_ids(true);
  out.mutable_sampling()->set_temperature(0);
  out.mutable_sampling()->set_seed(1);
  return out;
}

absl::StatusOr<std::vector<Canary>> AnswerAlone(const std::vector<std::string>& argv,
                                                const std::vector<v1::GenerateRequest>& requests) {
  RankServer alone(argv);
  if (!alone.ok()) return absl::UnavailableError("one rank alone does not serve");
  std::vector<Canary> out;
  for (const v1::GenerateRequest& request : requests) {
    out.push_back({request, Generate(alone.client(), request)});
    RETURN_IF_ERROR(out.back().want.status);
  }
  return out;
}

std::string DifferenceOf(const Generation& got, const Generation& want) {
  if (got.num_terminal != 1) return absl::StrCat(got.num_terminal, " terminal messages");
  if (got.started.SerializeAsString() != want.started.SerializeAsString()) return "started differs";
  if (got.token_ids != want.token_ids) {
    const auto [a, b] = std::mismatch(got.token_ids.begin(), got.token_ids.end(),
                                      want.token_ids.begin(), want.token_ids.end());
    return absl::StrCat("token ", a - got.token_ids.begin(), " of ", want.token_ids.size(),
                        " differs, ", got.token_ids.size(), " came");
  }
  if (BytesOf(got.logprobs) != BytesOf(want.logprobs)) return "logprobs differ";
  if (BytesOf(got.prompt_logprobs) != BytesOf(want.prompt_logprobs)) {
    return absl::StrCat("prompt_logprobs differ: ", got.prompt_logprobs.size(), " came of ",
                        want.prompt_logprobs.size());
  }
  if (got.thinking != want.thinking) return "the thinking differs";
  if (got.answer != want.answer) return "the answer's text differs";
  if (got.finish_reason != want.finish_reason) return "the finish reason differs";
  // What a rank has cached is its own affair.
  v1::Usage got_usage = got.usage, want_usage = want.usage;
  got_usage.clear_cached_tokens();
  want_usage.clear_cached_tokens();
  if (got_usage.SerializeAsString() != want_usage.SerializeAsString()) return "usage differs";
  return "";
}

std::string DifferenceOfCut(const Generation& got, const Generation& want) {
  if (got.num_terminal > 1) return absl::StrCat(got.num_terminal, " terminal messages");
  const auto begins = [](const auto& whole, const auto& part) {
    return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin());
  };
  if (!begins(want.token_ids, got.token_ids)) return "its token ids are no beginning";
  if (!absl::StartsWith(BytesOf(want.logprobs), BytesOf(got.logprobs))) {
    return "its logprobs are no beginning";
  }
  if (!absl::StartsWith(BytesOf(want.prompt_logprobs), BytesOf(got.prompt_logprobs))) {
    return "its prompt_logprobs are no beginning";
  }
  if (!absl::StartsWith(want.answer, got.answer)) return "its text is no beginning";
  return "";
}

}  // namespace jevons
