#include <optional>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "model/error_text.h"
#include "model/pre_tokenizer.h"
#include "nlohmann/json.hpp"

namespace jevons {

using nlohmann::json;

namespace {

constexpr size_t kMaxSteps = 64;
constexpr int kMaxDepth = 8;

// The pattern of a ByteLevel step with use_regex.
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string EscapeLiteral(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80 && !absl::ascii_isalnum(byte)) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

std::optional<SplitBehavior> ParseBehavior(std::string_view name) {
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return std::nullopt;
}

}  // namespace

// Thread-compatible.
class PreTokenizerReader {
 public:
  explicit PreTokenizerReader(ConfigProblems& problems) : problems_(problems) {}

  PreTokenizer Read(const json& value) {
    ReadStep(value, "pre_tokenizer", 0);
    if (problems_.empty() && !ends_in_byte_level_) {
      problems_.unsupported.push_back("pre_tokenizer without ByteLevel");
    }
    return std::move(result_);
  }

 private:
  void ReadStep(const json& value, const std::string& name, int depth) {
    if (!value.is_object()) {
      problems_.wrong.push_back(absl::StrCat(name, " is ", ShortJson(value), ", not an object"));
      return;
    }
    if (ends_in_byte_level_) {
      problems_.unsupported.push_back(absl::StrCat(name, ": a step after ByteLevel"));
      return;
    }
    ConfigReader reader(value, name + ".", &problems_);
    const std::string type = reader.String("type");
    if (type == "Sequence") {
      ReadSequence(reader, depth);
    } else if (type == "Split") {
      ReadSplit(reader);
    } else if (type == "Digits") {
      const bool is_individual = reader.Bool("individual_digits");
      AddSplit(reader, is_individual ? R"(\p{N})" : R"(\p{N}+)", {});
    } else if (type == "ByteLevel") {
      if (reader.Bool("add_prefix_space")) result_.steps_.push_back({});
      if (reader.Bool("use_regex", true)) AddSplit(reader, kByteLevelPattern, {});
      ends_in_byte_level_ = true;
    } else if (reader.Has("type")) {
      reader.AddUnsupported(absl::StrCat(reader.Name("type"), " ", Printable(type)));
    }
  }

  void ReadSequence(ConfigReader& reader, int depth) {
    const json* list = reader.Get("pretokenizers");
    const std::string name = reader.Name("pretokenizers");
    if (list == nullptr) {
      problems_.missing.push_back(name);
    } else if (!list->is_array()) {
      reader.AddWrong(absl::StrCat(name, " is ", ShortJson(*list), ", not a list"));
    } else if (depth == kMaxDepth) {
      reader.AddWrong(absl::StrCat(name, ": sequences in sequences; the limit is ", kMaxDepth));
    } else {
      for (size_t i = 0; i < list->size() && problems_.empty(); ++i) {
        ReadStep((*list)[i], absl::StrCat(name, "[", i, "]"), depth + 1);
      }
    }
  }

  void ReadSplit(ConfigReader& reader) {
    PreTokenizer::Step step;
    step.invert = reader.Bool("invert");
    const std::string behavior = reader.String("behavior");
    if (const std::optional<SplitBehavior> known = ParseBehavior(behavior)) {
      step.behavior = *known;
    } else if (reader.Has("behavior")) {
      reader.AddUnsupported(absl::StrCat(reader.Name("behavior"), " ", Printable(behavior)));
    }
    const json* pattern = reader.Get("pattern");
    const std::string name = reader.Name("pattern");
    if (pattern == nullptr) {
      problems_.missing.push_back(name);
      return;
    }
    if (!pattern->is_object()) {
      reader.AddWrong(absl::StrCat(name, " is ", ShortJson(*pattern), ", not an object"));
      return;
    }
    ConfigReader fields(*pattern, name + ".", &problems_);
    const bool is_literal = fields.Has("String");
    const std::string text = fields.String(is_literal ? "String" : "Regex");
    if (!problems_.empty()) return;
    if (text.empty()) {
      fields.AddWrong(absl::StrCat(name, " is empty"));
      return;
    }
    AddSplit(fields, is_literal ? EscapeLiteral(text) : text, std::move(step));
  }

  void AddSplit(ConfigReader& reader, std::string_view pattern, PreTokenizer::Step step) {
    if (result_.steps_.size() == kMaxSteps) {
      reader.AddWrong(absl::StrCat("pre_tokenizer has more than ", kMaxSteps, " steps"));
      return;
    }
    absl::StatusOr<Regex> regex = Regex::Compile(pattern);
    if (!regex.ok()) {
      const std::string text = absl::StrCat(reader.Name("Regex"), ": ", regex.status().message());
      if (absl::IsUnimplemented(regex.status())) {
        reader.AddUnsupported(text);
      } else {
        reader.AddWrong(text);
      }
      return;
    }
    step.regex = *std::move(regex);
    result_.steps_.push_back(std::move(step));
  }

  ConfigProblems& problems_;
  PreTokenizer result_;
  bool ends_in_byte_level_ = false;
};

PreTokenizer PreTokenizer::FromJson(const json& value, ConfigProblems& problems) {
  return PreTokenizerReader(problems).Read(value);
}

}  // namespace jevons
