// Runs token ids through an OutputProcessor and collects what comes out.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/output_processor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_tokenizer.h"

namespace jevons {

inline OutputOptions Options(std::vector<std::string> stop = {}) {
  return {.think_start_id = kThinkStart,
          .think_end_id = kThinkEnd,
          .end_ids = {kEnd, kOtherEnd},
          .stop = std::move(stop)};
}

// Everything that came out of a sequence.
struct Output {
  std::string thinking;
  std::string answer;
  std::vector<int32_t> token_ids;
  bool stopped = false;
  int32_t reasoning_tokens = 0;
};

inline void Collect(const StreamDelta& delta, Output& output) {
  (delta.channel == Channel::kThinking ? output.thinking : output.answer) += delta.text;
  output.token_ids.insert(output.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
}

inline Output RunAll(const Tokenizer& tokenizer, const OutputOptions& options,
                     const std::vector<int32_t>& ids) {
  OutputProcessor processor(tokenizer, options);
  Output output;
  for (const int32_t id : ids) {
    const OutputProcessor::Result result = processor.Push(id);
    EXPECT_THAT(result.delta.token_ids, testing::ElementsAre(id));
    EXPECT_FALSE(FindInvalidUtf8(result.delta.text).has_value());
    Collect(result.delta, output);
    output.stopped = result.stopped;
    if (result.stopped) break;
  }
  const StreamDelta rest = processor.Flush();
  EXPECT_TRUE(rest.token_ids.empty());
  Collect(rest, output);
  output.reasoning_tokens = processor.reasoning_tokens();
  return output;
}

}  // namespace jevons
