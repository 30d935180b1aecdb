// From sampled token ids to what a reader sees.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/stop_matcher.h"
#include "engine/token_stream.h"
#include "model/tokenizer.h"

namespace jevons {

struct OutputOptions {
  int32_t think_start_id = -1;  // -1: the model has none
  int32_t think_end_id = -1;
  bool starts_in_thinking = false;
  std::vector<int32_t> end_ids = {};
  bool ignore_eos = false;             // end ids are tokens like others
  std::vector<std::string> stop = {};  // as ValidateGeneration lets through
};

// One per sequence. Thread-compatible; the tokenizer outlives it.
//
// Thinking opens and closes by token id alone: the same characters spelled with ordinary tokens are
// text. The tags, end ids and special added tokens are never shown, but each stands in `token_ids`.
// Each channel decodes by itself, and what it holds back (half a character, a possible stop string)
// is shown when the channel closes.
class OutputProcessor {
 public:
  struct Result {
    StreamDelta delta;
    bool stopped = false;  // by an end id or a stop string; nothing may be pushed after it
  };

  OutputProcessor(const Tokenizer& tokenizer, OutputOptions options);

  // Takes one sampled token, id >= 0. The delta holds its id, and the text that became sure with
  // it. A tag's delta holds the rest of the channel that it closes, and is of that channel where
  // there is such a rest; else it is thinking.
  Result Push(int32_t id);
  // What is held back at the end of the output, whatever ended it; no text after a stop string.
  StreamDelta Flush();

  // Where the next token belongs.
  Channel channel() const { return channel_; }
  // Tokens pushed in thinking so far, both tags included.
  int32_t reasoning_tokens() const { return reasoning_tokens_; }

 private:
  bool Ends(int32_t id) const;
  // Ends the text of the channel and returns the rest of it.
  std::string CloseChannel();
  Result SwitchTo(Channel channel, int32_t tag_id);

  const Tokenizer& tokenizer_;
  const OutputOptions options_;
  Channel channel_;
  Detokenizer thinking_;
  Detokenizer answer_;
  StopMatcher stop_matcher_;
  int32_t reasoning_tokens_ = 0;
};

}  // namespace jevons
