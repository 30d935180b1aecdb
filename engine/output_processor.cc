#include "engine/output_processor.h"

#include <algorithm>
#include <utility>

namespace jevons {

OutputProcessor::OutputProcessor(const Tokenizer& tokenizer, OutputOptions options)
    : tokenizer_(tokenizer),
      options_(std::move(options)),
      channel_(options_.starts_in_thinking ? Channel::kThinking : Channel::kAnswer),
      stop_matcher_(options_.stop) {}

OutputProcessor::Result OutputProcessor::Push(int32_t id) {
  if (Ends(id)) {
    if (channel_ == Channel::kThinking) ++reasoning_tokens_;
    return {.delta = {.channel = channel_, .token_ids = {id}}, .stopped = true};
  }
  if (id == options_.think_start_id) return SwitchTo(Channel::kThinking, id);
  if (id == options_.think_end_id) return SwitchTo(Channel::kAnswer, id);

  Result result = {.delta = {.channel = channel_, .token_ids = {id}}};
  const AddedToken* added = tokenizer_.FindAdded(id);
  const bool hidden = added != nullptr && added->special;
  const std::string_view bytes = hidden ? std::string_view() : tokenizer_.TokenBytes(id);
  if (channel_ == Channel::kThinking) {
    ++reasoning_tokens_;
    result.delta.text = thinking_.Push(bytes);
    return result;
  }
  result.delta.text = stop_matcher_.Push(answer_.Push(bytes));
  result.stopped = stop_matcher_.matched();
  return result;
}

StreamDelta OutputProcessor::Flush() { return {.channel = channel_, .text = CloseChannel()}; }

bool OutputProcessor::Ends(int32_t id) const {
  if (options_.ignore_eos) return false;
  return std::find(options_.end_ids.begin(), options_.end_ids.end(), id) != options_.end_ids.end();
}

std::string OutputProcessor::CloseChannel() {
  if (channel_ == Channel::kThinking) return thinking_.Flush();
  std::string text = stop_matcher_.Push(answer_.Flush());
  return text + stop_matcher_.Flush();
}

OutputProcessor::Result OutputProcessor::SwitchTo(Channel channel, int32_t tag_id) {
  Result result = {.delta = {.token_ids = {tag_id}}};
  if (channel_ == Channel::kThinking || channel == Channel::kThinking) {
    ++reasoning_tokens_;
    result.delta.channel = Channel::kThinking;
  }
  if (channel == channel_) return result;
  result.delta.text = CloseChannel();
  result.stopped = stop_matcher_.matched();
  if (!result.delta.text.empty()) result.delta.channel = channel_;
  channel_ = channel;
  return result;
}

}  // namespace jevons
