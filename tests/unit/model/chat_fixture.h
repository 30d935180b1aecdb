// Chat formats from templates of the test data, with the demo model's tokenizer.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model/chat_format.h"
#include "model/tokenizer.h"
#include "tests/support/test_data.h"

namespace jevons {

inline constexpr const char* kBos = "<｜begin▁of▁sentence｜>";
inline constexpr const char* kEos = "<｜end▁of▁sentence｜>";

class ChatFixture : public ::testing::Test {
 protected:
  using Json = nlohmann::ordered_json;

  void SetUp() override {
    auto tokenizer = Tokenizer::Load(DemoModelPath());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  // A format loaded from a folder with this tokenizer_config.json and, if not empty,
  // chat_template.jinja.
  absl::StatusOr<std::unique_ptr<ChatFormat>> LoadConfig(const std::string& config,
                                                         const std::string& jinja = "") {
    std::string folder = ::testing::TempDir() + "/chat_format_" + std::to_string(getpid()) + "_" +
                         std::to_string(num_folders_++);
    std::filesystem::create_directories(folder);
    if (!config.empty()) std::ofstream(folder + "/tokenizer_config.json") << config;
    if (!jinja.empty()) std::ofstream(folder + "/chat_template.jinja") << jinja;
    auto format = ChatFormat::Load(folder, *tokenizer_);
    std::filesystem::remove_all(folder);
    return format;
  }

  std::unique_ptr<ChatFormat> LoadTemplate(const std::string& source, const std::string& bos = kBos,
                                           const std::string& eos = kEos) {
    Json config = {
        {"chat_template", source}, {"bos_token", bos}, {"eos_token", {{"content", eos}}}};
    auto format = LoadConfig(config.dump());
    EXPECT_TRUE(format.ok()) << format.status();
    return format.ok() ? *std::move(format) : nullptr;
  }

  std::unique_ptr<ChatFormat> LoadFile(const std::string& name) {
    return LoadTemplate(ReadFile(DataPath("chat/templates/" + name)));
  }

  static std::string TextOf(const absl::StatusOr<RenderedPrompt>& prompt) {
    EXPECT_TRUE(prompt.ok()) << prompt.status();
    return prompt.ok() ? prompt->text : "";
  }

  std::vector<int32_t> IdsOf(const absl::StatusOr<RenderedPrompt>& prompt) {
    EXPECT_TRUE(prompt.ok()) << prompt.status();
    if (!prompt.ok()) return {};
    auto ids = tokenizer_->Encode(prompt->text, prompt->barriers);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? *std::move(ids) : std::vector<int32_t>();
  }

  std::vector<int32_t> ControlIds(const absl::StatusOr<RenderedPrompt>& prompt) {
    std::vector<int32_t> control;
    for (int32_t id : IdsOf(prompt)) {
      if (tokenizer_->FindAdded(id)) control.push_back(id);
    }
    return control;
  }

  static Json User(const std::string& content) { return {{"role", "user"}, {"content", content}}; }
  static Json Assistant(const std::string& content) {
    return {{"role", "assistant"}, {"content", content}};
  }
  static Json Talk(std::vector<Json> messages) { return {{"messages", Json(std::move(messages))}}; }

  std::unique_ptr<Tokenizer> tokenizer_;
  int num_folders_ = 0;
};

}  // namespace jevons
