// Runs requests through an engine and gathers all that they gave.
#pragma once

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "engine/engine.h"
#include "gtest/gtest.h"

namespace jevons {

// A wait that ends a hanging test, not one that any test counts on.
inline constexpr absl::Duration kPatience = absl::Seconds(120);

// Request `i` of a tiny model: every other one is drawn with its own seed.
inline GenerationRequest RandomRequest(int i, int64_t length, int num_new_tokens, Random& random) {
  GenerationRequest out;
  for (int64_t j = 0; j < length; ++j) {
    out.prompt_ids.push_back(static_cast<int32_t>(random.Below(130)));
  }
  out.max_new_tokens = num_new_tokens;
  out.ignore_eos = true;
  out.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
  out.sampling.seed = 100 + i;
  out.num_logprobs = 3;
  out.num_prompt_logprobs = 1;
  return out;
}

// Prompts of 1 to 90 tokens.
inline std::vector<GenerationRequest> RandomRequests(int count, int num_new_tokens) {
  Random random(23);
  std::vector<GenerationRequest> out;
  for (int i = 0; i < count; ++i) {
    const int64_t length = 1 + random.Below(90);
    out.push_back(RandomRequest(i, length, num_new_tokens, random));
  }
  return out;
}

struct Outcome {
  std::vector<int32_t> ids;
  std::vector<Logprobs> logprobs;
  std::vector<Logprobs> prompt_logprobs;
  std::string text;
  StreamEnd end;
};

inline Outcome ReadAll(TokenStream& stream) {
  Outcome out;
  while (std::optional<StreamChunk> chunk = stream.WaitChunk(kPatience)) {
    StreamDelta& delta = chunk->delta;
    out.ids.insert(out.ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    std::move(delta.logprobs.begin(), delta.logprobs.end(), std::back_inserter(out.logprobs));
    std::move(delta.prompt_logprobs.begin(), delta.prompt_logprobs.end(),
              std::back_inserter(out.prompt_logprobs));
    out.text += delta.text;
    if (!chunk->end) continue;
    out.end = *chunk->end;
    return out;
  }
  ADD_FAILURE() << "nothing came for " << kPatience;
  return out;
}

inline std::vector<Outcome> RunTogether(Engine& engine,
                                        const std::vector<GenerationRequest>& requests) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const GenerationRequest& request : requests) {
    auto stream = engine.Submit(request);
    EXPECT_TRUE(stream.ok()) << stream.status();
    if (stream.ok()) streams.push_back(*stream);
  }
  std::vector<Outcome> out;
  for (auto& stream : streams) out.push_back(ReadAll(*stream));
  out.resize(requests.size());
  return out;
}

inline bool SameBits(const std::vector<Logprobs>& a, const std::vector<Logprobs>& b) {
  const auto same = [](const TokenLogprob& x, const TokenLogprob& y) {
    return x.id == y.id && std::memcmp(&x.logprob, &y.logprob, sizeof(float)) == 0;
  };
  return std::equal(
      a.begin(), a.end(), b.begin(), b.end(), [&](const Logprobs& x, const Logprobs& y) {
        return same(x.chosen, y.chosen) &&
               std::equal(x.top.begin(), x.top.end(), y.top.begin(), y.top.end(), same);
      });
}

inline void ExpectSame(const Outcome& got, const Outcome& want) {
  EXPECT_EQ(got.ids, want.ids);
  EXPECT_TRUE(SameBits(got.logprobs, want.logprobs));
  EXPECT_TRUE(SameBits(got.prompt_logprobs, want.prompt_logprobs));
  EXPECT_EQ(got.text, want.text);
  EXPECT_EQ(got.end.reason, want.end.reason);
  EXPECT_EQ(got.end.usage.prompt_tokens, want.end.usage.prompt_tokens);
  EXPECT_EQ(got.end.usage.completion_tokens, want.end.usage.completion_tokens);
  EXPECT_EQ(got.end.usage.reasoning_tokens, want.end.usage.reasoning_tokens);
}

}  // namespace jevons
