// An engine without a model: a test plays the engine thread.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "engine/engine.h"
#include "gtest/gtest.h"

namespace jevons {

constexpr int32_t kFakeBosId = 256;

// Every byte is a token; bos is token 256.
class ByteTokenizer : public Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              std::span<const size_t>) const override {
    const auto bad = FindInvalidUtf8(text);
    if (bad) return absl::InvalidArgumentError(absl::StrCat("ill-formed UTF-8 at byte ", *bad));
    std::vector<int32_t> out;
    for (const char c : text) out.push_back(static_cast<unsigned char>(c));
    return out;
  }
  std::string_view TokenBytes(int32_t id) const override {
    if (id < 0 || id > kFakeBosId) return {};
    return id == kFakeBosId ? std::string_view(bos_.content) : std::string_view(&bytes_[id], 1);
  }
  const AddedToken* FindAdded(int32_t id) const override {
    return id == kFakeBosId ? &bos_ : nullptr;
  }
  std::optional<int32_t> FindToken(std::string_view content) const override {
    if (content == bos_.content) return kFakeBosId;
    return std::nullopt;
  }
  std::span<const AddedToken> added_tokens() const override { return {&bos_, 1}; }
  int32_t num_tokens() const override { return kFakeBosId + 1; }

 private:
  static std::string AllBytes() {
    std::string out(256, '\0');
    for (int i = 0; i < 256; ++i) out[i] = static_cast<char>(i);
    return out;
  }
  const std::string bytes_ = AllBytes();
  const AddedToken bos_ = {.id = kFakeBosId, .content = "<s>", .special = true};
};

// Renders a conversation as its JSON text, so that a test sees what arrived.
class JsonChatFormat : public ChatFormat {
 public:
  JsonChatFormat() { has_template_ = true; }
  absl::StatusOr<RenderedPrompt> Render(const nlohmann::ordered_json& conversation,
                                        const ChatOptions&) const override {
    RenderedPrompt out;
    out.text = conversation.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    return out;
  }
};

// Thread-safe.
class FakeEngine : public Engine {
 public:
  FakeEngine() {
    config_.model_type = "fake";
    config_.vocab_size = 300;
    config_.bos_token_id = kFakeBosId;
    limits_ = {.vocab_size = 300,
               .num_tokens = kFakeBosId + 1,
               .max_model_len = 100'000,
               .kv_cache_tokens = 1'000'000};
    options_.model_name = "fake-model";
  }
  ~FakeEngine() override { Drain(absl::ZeroDuration()); }

  absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                      std::function<void()> ready) override {
    RETURN_IF_ERROR(ValidateGeneration(request, limits_));
    MutexLock lock(&mutex_);
    if (draining_) return absl::UnavailableError("draining");
    if (!refuse_.ok()) return refuse_;
    taken_.push_back({std::move(request), std::make_shared<TokenStream>(std::move(ready))});
    changed_.NotifyAll();
    return taken_.back().stream;
  }
  // Ends what a test left open.
  void Drain(absl::Duration) override {
    std::vector<Taken> open;
    {
      MutexLock lock(&mutex_);
      draining_ = true;
      open.swap(taken_);
    }
    for (const Taken& taken : open) {
      if (taken.ended) continue;
      taken.stream->End(
          {.reason = FinishReason::kError, .error = absl::UnavailableError("shutting down")});
    }
  }
  EngineStats stats() const override { return {}; }
  absl::Status failure() const override {
    MutexLock lock(&mutex_);
    return failure_;
  }
  std::vector<RankStats> rank_stats() const override {
    MutexLock lock(&mutex_);
    return ranks_;
  }
  absl::Status CheckIntegrity() override { return absl::OkStatus(); }
  const ModelConfig& config() const override { return config_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  const ChatFormat& chat_format() const override { return chat_format_; }
  const GenerationLimits& limits() const override { return limits_; }
  const EngineOptions& options() const override { return options_; }
  std::string backend_description() const override { return "fake"; }

  // Before any thread uses the engine.
  ModelConfig& mutable_config() { return config_; }
  GenerationLimits& mutable_limits() { return limits_; }

  void SetRanks(std::vector<RankStats> ranks) {
    MutexLock lock(&mutex_);
    ranks_ = std::move(ranks);
  }
  void FailWith(absl::Status status) {
    MutexLock lock(&mutex_);
    failure_ = std::move(status);
  }

  void RefuseWith(absl::Status status) {
    MutexLock lock(&mutex_);
    refuse_ = std::move(status);
  }
  // Request i and its stream, once they have arrived; null after half a minute.
  std::shared_ptr<TokenStream> WaitStream(size_t i) {
    MutexLock lock(&mutex_);
    return WaitLocked(i) ? taken_[i].stream : nullptr;
  }
  GenerationRequest WaitRequest(size_t i) {
    MutexLock lock(&mutex_);
    return WaitLocked(i) ? taken_[i].request : GenerationRequest();
  }
  void End(size_t i, StreamEnd end) {
    std::shared_ptr<TokenStream> stream;
    {
      MutexLock lock(&mutex_);
      if (!WaitLocked(i)) return;
      taken_[i].ended = true;
      stream = taken_[i].stream;
    }
    stream->End(std::move(end));
  }

 private:
  struct Taken {
    GenerationRequest request;
    std::shared_ptr<TokenStream> stream;
    bool ended = false;
  };
  bool WaitLocked(size_t i) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const SteadyTime deadline = SteadyDeadline(absl::Seconds(30));
    while (taken_.size() <= i) {
      if (!changed_.WaitUntil(&mutex_, deadline) && taken_.size() <= i) {
        ADD_FAILURE() << "request " << i << " did not arrive";
        return false;
      }
    }
    return true;
  }

  ModelConfig config_;
  GenerationLimits limits_;
  EngineOptions options_;
  const ByteTokenizer tokenizer_;
  const JsonChatFormat chat_format_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<Taken> taken_ ABSL_GUARDED_BY(mutex_);
  absl::Status refuse_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::vector<RankStats> ranks_ ABSL_GUARDED_BY(mutex_) = {RankStats()};
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace jevons
