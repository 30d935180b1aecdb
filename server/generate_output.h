// How `jevons generate` prints.
#pragma once

#include <string>
#include <vector>

#include "engine/token_stream.h"

namespace jevons {

// All of one generation.
struct GenerationResult {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> output_ids;
  std::string text;       // the answer as shown
  std::string reasoning;  // the thinking
  std::vector<Logprobs> logprobs;
  std::vector<Logprobs> prompt_logprobs;
  StreamEnd end;
  uint64_t seed = 0;

  void Add(StreamChunk chunk);
};

// "stop", "length", "tool_calls".
std::string FinishReasonName(FinishReason reason);

enum class LogprobMode { kOmit, kPrint };
// One JSON object on one line; floats with all their digits.
std::string ResultJson(const GenerationResult& result, LogprobMode mode);
// {"ids": [...], "logprobs": [...]}: logprobs[i] is of ids[i + 1] after ids[0..i].
std::string ScoreJson(const GenerationResult& result);

}  // namespace jevons
