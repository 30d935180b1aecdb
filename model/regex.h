// Regular expressions of tokenizer.json: Oniguruma's syntax and meaning, run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

struct pcre2_real_code_8;
struct pcre2_real_jit_stack_8;
struct pcre2_real_match_context_8;
struct pcre2_real_match_data_8;

namespace jevons {

enum class RegexEngine { kJit, kInterpreter };

// The memory that matching works in. Thread-compatible: one for each thread that matches.
class RegexScratch {
 public:
  RegexScratch();

 private:
  friend class Regex;
  struct Free {
    void operator()(pcre2_real_jit_stack_8* stack) const;
    void operator()(pcre2_real_match_context_8* context) const;
    void operator()(pcre2_real_match_data_8* data) const;
  };
  std::unique_ptr<pcre2_real_jit_stack_8, Free> stack_;
  std::unique_ptr<pcre2_real_match_context_8, Free> context_;
  std::unique_ptr<pcre2_real_match_data_8, Free> data_;
};

// Immutable, thread-safe.
class Regex {
 public:
  struct Match {
    size_t begin = 0;
    size_t end = 0;
  };

  // UNIMPLEMENTED names the part of Oniguruma's syntax that has no translation; INVALID_ARGUMENT
  // gives PCRE2's message. With kJit the interpreter still runs where the machine forbids new code.
  static absl::StatusOr<Regex> Compile(std::string_view pattern,
                                       RegexEngine engine = RegexEngine::kJit);

  // The leftmost match in `text`, which is well-formed UTF-8, that begins at `from` or later.
  // INVALID_ARGUMENT if the match needs more steps or memory than the limits allow.
  absl::StatusOr<std::optional<Match>> Find(std::string_view text, size_t from,
                                            RegexScratch& scratch) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

// The PCRE2 pattern (options UTF, UCP, MULTILINE) that matches what Oniguruma matches with
// `pattern` in its default (Ruby) syntax. UNIMPLEMENTED or INVALID_ARGUMENT as above.
absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern);

}  // namespace jevons
