// Stand-ins for a checkpoint folder that has weights but no tokenizer: prompts are token ids alone.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "model/chat_format.h"
#include "model/tokenizer.h"

namespace jevons {

class NoTokenizer : public Tokenizer {
 public:
  explicit NoTokenizer(int32_t vocab_size) : vocab_size_(vocab_size) {}

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view,
                                              std::span<const size_t>) const override {
    return absl::FailedPreconditionError(
        "this model folder has no tokenizer.json: give token ids instead of text");
  }
  std::string_view TokenBytes(int32_t) const override { return {}; }
  const AddedToken* FindAdded(int32_t) const override { return nullptr; }
  std::optional<int32_t> FindToken(std::string_view) const override { return std::nullopt; }
  std::span<const AddedToken> added_tokens() const override { return {}; }
  int32_t num_tokens() const override { return vocab_size_; }

 private:
  const int32_t vocab_size_;
};

class NoChatFormat : public ChatFormat {
 public:
  absl::StatusOr<RenderedPrompt> Render(const nlohmann::ordered_json&,
                                        const ChatOptions&) const override {
    return absl::FailedPreconditionError(
        "this model folder has no chat template: give a text or token ids instead of messages");
  }
};

}  // namespace jevons
