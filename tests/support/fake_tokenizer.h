// A tokenizer for tests: each byte is a token, and a test adds what longer ones it wants.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace jevons {

inline constexpr int32_t kThinkStart = 1000;
inline constexpr int32_t kThinkEnd = 1001;
inline constexpr int32_t kEnd = 1002;       // special
inline constexpr int32_t kOtherEnd = 1003;  // an added token that is not special
inline constexpr int32_t kSpecial = 1004;
inline constexpr int32_t kAdded = 1005;

// Tokens 0..255 are single bytes; the test adds others from 2000 on.
class FakeTokenizer : public Tokenizer {
 public:
  FakeTokenizer() {
    added_ = {{kThinkStart, "<think>", false}, {kThinkEnd, "</think>", false},
              {kEnd, "<eos>", true},           {kOtherEnd, "<turn>", false},
              {kSpecial, "<pad>", true},       {kAdded, "<tool>", false}};
    for (const AddedToken& token : added_) bytes_[token.id] = token.content;
    for (int32_t byte = 0; byte < 256; ++byte)
      bytes_[byte] = std::string(1, static_cast<char>(byte));
  }

  int32_t TokenOf(std::string_view bytes) {
    if (bytes.size() == 1) return static_cast<uint8_t>(bytes[0]);
    const auto [it, is_new] = ids_.try_emplace(std::string(bytes), next_id_);
    if (is_new) bytes_[next_id_++] = bytes;
    return it->second;
  }

  std::vector<int32_t> Bytewise(std::string_view text) {
    std::vector<int32_t> ids;
    for (char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view,
                                              std::span<const size_t>) const override {
    return absl::UnimplementedError("fake");
  }
  std::string_view TokenBytes(int32_t id) const override {
    const auto it = bytes_.find(id);
    return it == bytes_.end() ? std::string_view() : it->second;
  }
  const AddedToken* FindAdded(int32_t id) const override {
    const auto it = std::find_if(added_.begin(), added_.end(),
                                 [id](const AddedToken& token) { return token.id == id; });
    return it == added_.end() ? nullptr : &*it;
  }
  std::optional<int32_t> FindToken(std::string_view) const override { return std::nullopt; }
  std::span<const AddedToken> added_tokens() const override { return added_; }
  int32_t num_tokens() const override { return next_id_; }

 private:
  std::vector<AddedToken> added_;
  std::map<int32_t, std::string> bytes_;
  std::map<std::string, int32_t, std::less<>> ids_;
  int32_t next_id_ = 2000;
};

}  // namespace jevons
