// From what a client gives (text, ids, a conversation) to prompt ids, for one served model.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"

namespace jevons {

// Thread-safe. `engine` outlives it.
class PromptBuilder {
 public:
  explicit PromptBuilder(const Engine* engine);

  const Engine& engine() const { return *engine_; }

  // Whether bos is put in front of raw text that does not start with it.
  enum class Bos { kNone, kAsTrained };
  // Ids of raw text; control tokens in it are control tokens. INVALID_ARGUMENT for ill-formed
  // UTF-8, and for text so long that it cannot fit the model (both numbers are given), before any
  // work is spent on it.
  absl::StatusOr<std::vector<int32_t>> FromText(std::string_view text, Bos bos) const;

  struct Rendered {
    std::string text;
    std::vector<int32_t> ids;
  };
  // `conversation` as ChatFormat::Render takes it. No bos beyond the template's own.
  absl::StatusOr<Rendered> FromConversation(const nlohmann::ordered_json& conversation,
                                            const ChatOptions& options) const;

  // INVALID_ARGUMENT, with index, limit and value, for an id that the tokenizer does not know.
  absl::Status CheckIds(std::string_view field, std::span<const int32_t> ids) const;

  // What applies where a request says nothing; the seed is not set.
  SamplingParams DefaultSampling() const;

 private:
  absl::Status CheckLength(std::string_view what, size_t num_bytes) const;

  const Engine* const engine_;
  size_t max_token_bytes_ = 0;  // of the longest token; 0: the model has no tokenizer
};

}  // namespace jevons
