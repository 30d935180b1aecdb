#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/strings.h"

namespace jevons {
namespace {

constexpr size_t kJitStackBytes = 32 << 10;
constexpr size_t kMaxJitStackBytes = 4 << 20;
constexpr uint32_t kMaxHeapKib = 256 << 10;
// Backtracking steps of one match: what a long run of one character needs, and room for the rest.
constexpr uint64_t kBaseSteps = 10'000'000;
constexpr uint64_t kStepsPerByte = 8;

uint32_t MaxSteps(size_t text_bytes) {
  const uint64_t steps = kBaseSteps + kStepsPerByte * text_bytes;
  return static_cast<uint32_t>(std::min<uint64_t>(steps, std::numeric_limits<uint32_t>::max()));
}

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

void RegexScratch::Free::operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
void RegexScratch::Free::operator()(pcre2_match_context* context) const {
  pcre2_match_context_free(context);
}
void RegexScratch::Free::operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
void Regex::Free::operator()(pcre2_code* code) const { pcre2_code_free(code); }

RegexScratch::RegexScratch()
    : stack_(pcre2_jit_stack_create(kJitStackBytes, kMaxJitStackBytes, nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      data_(pcre2_match_data_create(1, nullptr)) {
  CHECK(context_ != nullptr && data_ != nullptr);
  // Without a stack of its own the JIT takes 32 KiB of the machine's.
  if (stack_ != nullptr) pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
  pcre2_set_heap_limit(context_.get(), kMaxHeapKib);
}

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern, RegexEngine engine) {
  ASSIGN_OR_RETURN(const std::string translated, TranslateOniguruma(pattern));
  int error = 0;
  PCRE2_SIZE offset = 0;
  Regex regex;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                                  translated.size(), PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE,
                                  &error, &offset, nullptr));
  if (regex.code_ == nullptr) {
    const bool is_unknown = error == PCRE2_ERROR_UNKNOWN_UNICODE_PROPERTY;
    return absl::Status(
        is_unknown ? absl::StatusCode::kUnimplemented : absl::StatusCode::kInvalidArgument,
        absl::StrFormat("the pattern \"%s\": %s", ToAbsl(pattern.substr(0, 200)),
                        ErrorText(error)));
  }
  // A failure leaves the interpreter, which gives the same matches.
  if (engine == RegexEngine::kJit) pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);
  return regex;
}

absl::StatusOr<std::optional<Regex::Match>> Regex::Find(std::string_view text, size_t from,
                                                        RegexScratch& scratch) const {
  pcre2_set_match_limit(scratch.context_.get(), MaxSteps(text.size()));
  const auto run = [&](uint32_t options) {
    return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       options | PCRE2_NO_UTF_CHECK, scratch.data_.get(), scratch.context_.get());
  };
  int result = run(0);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(PCRE2_NO_JIT);
  if (result == PCRE2_ERROR_NOMATCH) return std::optional<Match>();
  if (result < 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "text of %d bytes: the tokenizer's pattern fails at byte %d: %s (limits: %d "
        "steps, %d KiB)",
        text.size(), from, ErrorText(result), MaxSteps(text.size()), kMaxHeapKib));
  }
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(scratch.data_.get());
  return std::optional<Match>(Match{offsets[0], offsets[1]});
}

}  // namespace jevons
