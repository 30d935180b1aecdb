#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/error_text.h"
#include "model/json_events.h"

namespace jevons {
namespace {

struct FormatDType {
  std::string_view name;
  int64_t bits;
  std::optional<DType> dtype;
};

constexpr std::array kFormatDTypes = {
    FormatDType{"F32", 32, DType::kF32},     FormatDType{"F16", 16, DType::kF16},
    FormatDType{"BF16", 16, DType::kBF16},   FormatDType{"F8_E4M3", 8, DType::kF8E4M3},
    FormatDType{"I32", 32, DType::kI32},     FormatDType{"I64", 64, DType::kI64},
    FormatDType{"U8", 8, DType::kU8},        FormatDType{"BOOL", 8, std::nullopt},
    FormatDType{"F4", 4, std::nullopt},      FormatDType{"F6_E2M3", 6, std::nullopt},
    FormatDType{"F6_E3M2", 6, std::nullopt}, FormatDType{"I8", 8, std::nullopt},
    FormatDType{"F8_E5M2", 8, std::nullopt}, FormatDType{"F8_E8M0", 8, std::nullopt},
    FormatDType{"I16", 16, std::nullopt},    FormatDType{"U16", 16, std::nullopt},
    FormatDType{"U32", 32, std::nullopt},    FormatDType{"F64", 64, std::nullopt},
    FormatDType{"U64", 64, std::nullopt},    FormatDType{"C64", 64, std::nullopt},
};

const FormatDType* FindFormatDType(std::string_view name) {
  for (const FormatDType& d : kFormatDTypes) {
    if (d.name == name) return &d;
  }
  return nullptr;
}

// Bits of a tensor of this shape; nothing when that, or any partial product, leaves int64.
// Dimensions of 0 count as 1 there, because strides are products of the other ones.
std::optional<int64_t> SizeInBits(const FormatDType& dtype, const std::vector<int64_t>& shape) {
  int64_t bits = dtype.bits;
  bool empty = false;
  for (int64_t dim : shape) {
    empty |= dim == 0;
    if (__builtin_mul_overflow(bits, std::max<int64_t>(dim, 1), &bits)) return std::nullopt;
  }
  return empty ? 0 : bits;
}

// Collects the entries of a header and stops at the first thing that does not belong there.
class HeaderReader : public JsonEvents {
 public:
  std::vector<StoredTensor> TakeTensors() { return std::move(tensors_); }
  const std::string& error() const { return error_; }

  bool null() override { return Value("null"); }
  bool boolean(bool) override { return Value("a boolean"); }
  bool number_integer(int64_t value) override { return Number(value < 0, 0); }
  bool number_unsigned(uint64_t value) override { return Number(value > INT64_MAX, value); }
  bool number_float(double, const std::string&) override { return Value("a fraction"); }
  bool string(std::string& value) override {
    if (in_metadata() || depth_ != 2 || field_ != Field::kDType) return Value("a string");
    entry_.dtype = value;
    return true;
  }

  bool start_object(std::size_t) override {
    if (depth_ == 1 && !in_metadata_key_) StartEntry();
    if (depth_ >= 2 && !in_metadata()) return Value("an object");
    ++depth_;
    return true;
  }

  bool key(std::string& name) override {
    if (depth_ == 1) return TopLevelKey(name);
    if (in_metadata()) return true;
    field_ = name == "dtype"          ? Field::kDType
             : name == "shape"        ? Field::kShape
             : name == "data_offsets" ? Field::kOffsets
                                      : Field::kUnknown;
    if (field_ == Field::kUnknown) return Fail(absl::StrCat("unknown field ", Printable(name)));
    bool& seen = seen_[static_cast<size_t>(field_)];
    if (seen) return Fail(absl::StrCat("field ", name, " twice"));
    seen = true;
    return true;
  }

  bool end_object() override {
    --depth_;
    if (depth_ != 1 || in_metadata_key_) return true;
    for (Field field : {Field::kDType, Field::kShape, Field::kOffsets}) {
      if (!seen_[static_cast<size_t>(field)]) {
        return Fail(absl::StrCat("field ", FieldName(field), " is missing"));
      }
    }
    if (offsets_.size() != 2) {
      return Fail(absl::StrCat("data_offsets has ", offsets_.size(), " numbers, not 2"));
    }
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
    tensors_.push_back(entry_);
    return true;
  }

  bool start_array(std::size_t) override {
    const bool list = field_ == Field::kShape || field_ == Field::kOffsets;
    if (!in_metadata() && (depth_ != 2 || !list)) return Value("a list");
    ++depth_;
    return true;
  }

  bool end_array() override {
    --depth_;
    return true;
  }

 private:
  enum class Field { kDType, kShape, kOffsets, kUnknown };

  static const char* FieldName(Field field) {
    constexpr std::array<const char*, 4> kNames = {"dtype", "shape", "data_offsets", "?"};
    return kNames[static_cast<size_t>(field)];
  }

  bool in_metadata() const { return depth_ >= 1 && in_metadata_key_; }

  void StartEntry() {
    entry_.dtype.clear();
    entry_.shape.clear();
    offsets_.clear();
    seen_ = {};
  }

  bool TopLevelKey(const std::string& name) {
    in_metadata_key_ = name == "__metadata__";
    entry_.name = name;
    if (!names_.insert(name).second) return Fail("the name is there twice");
    return true;
  }

  // A value of a kind that is only allowed inside __metadata__.
  bool Value(const char* kind) {
    if (in_metadata()) return true;
    if (depth_ == 0) return Fail(absl::StrCat("the header is ", kind, ", not an object"));
    if (depth_ == 1) return Fail(absl::StrCat("the entry is ", kind, ", not an object"));
    return Fail(absl::StrCat(FieldName(field_), " is or holds ", kind));
  }

  bool Number(bool out_of_range, uint64_t value) {
    if (in_metadata() || depth_ != 3) return Value("a number");
    if (out_of_range) {
      return Fail(absl::StrCat(FieldName(field_), " holds a number outside [0, 2^63)"));
    }
    (field_ == Field::kShape ? entry_.shape : offsets_).push_back(static_cast<int64_t>(value));
    return true;
  }

  bool Fail(const std::string& what) {
    error_ = depth_ == 0 ? what : absl::StrCat("tensor ", Printable(entry_.name), ": ", what);
    return false;
  }

  int64_t depth_ = 0;
  bool in_metadata_key_ = false;
  Field field_ = Field::kUnknown;
  std::array<bool, 4> seen_ = {};
  StoredTensor entry_;
  std::vector<int64_t> offsets_;
  std::unordered_set<std::string> names_;
  std::vector<StoredTensor> tensors_;
  std::string error_;
};

// Checks offsets (relative to the data) against dtype, shape and `data_bytes`.
absl::Status CheckEntry(const StoredTensor& t, int64_t data_bytes) {
  const auto fail = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Printable(t.name), ": ", what...));
  };
  const FormatDType* dtype = FindFormatDType(t.dtype);
  if (dtype == nullptr) return fail("unknown dtype ", Printable(t.dtype));
  if (t.begin > t.end) return fail("data_offsets [", t.begin, ", ", t.end, "] run backwards");
  if (t.end > data_bytes) {
    return fail("data ends at byte ", t.end, " but the file holds ", data_bytes,
                " bytes of data; the file is cut short or damaged");
  }
  const std::optional<int64_t> bits = SizeInBits(*dtype, t.shape);
  if (!bits) return fail("the size of ", t.dtype, " ", ShapeToString(t.shape), " overflows");
  if (*bits % 8 != 0 || *bits / 8 != t.bytes()) {
    return fail(t.dtype, " ", ShapeToString(t.shape), " takes ", *bits / 8,
                " bytes but data_offsets span ", t.bytes());
  }
  return absl::OkStatus();
}

absl::Status CheckNoOverlap(const std::vector<StoredTensor>& tensors) {
  std::vector<const StoredTensor*> order;
  for (const StoredTensor& t : tensors) {
    if (t.bytes() > 0) order.push_back(&t);
  }
  std::sort(order.begin(), order.end(),
            [](const StoredTensor* a, const StoredTensor* b) { return a->begin < b->begin; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->begin >= order[i - 1]->end) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensors ", Printable(order[i - 1]->name),
                                                   " and ", Printable(order[i]->name),
                                                   " share bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<StoredTensor>> ParseSafetensors(std::string_view file) {
  const int64_t size = static_cast<int64_t>(file.size());
  if (size < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file has ", size, " bytes; the header length alone takes 8"));
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<uint8_t>(file[i]);
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return absl::InvalidArgumentError(absl::StrCat("the header has ", length, " bytes; at most ",
                                                   kMaxSafetensorsHeaderBytes, " are read"));
  }
  const int64_t data_start = 8 + static_cast<int64_t>(length);
  if (data_start > size) {
    return absl::InvalidArgumentError(absl::StrCat("the header ends at byte ", data_start,
                                                   " but the file has ", size,
                                                   " bytes; the file is cut short or damaged"));
  }
  HeaderReader reader;
  if (!ReadJson(file.substr(8, length), &reader)) {
    if (!reader.error().empty()) return absl::InvalidArgumentError(reader.error());
    return absl::InvalidArgumentError(
        absl::StrCat("the header is not JSON at its byte ", reader.error_offset().value_or(0)));
  }
  std::vector<StoredTensor> tensors = reader.TakeTensors();
  for (StoredTensor& t : tensors) {
    RETURN_IF_ERROR(CheckEntry(t, size - data_start));
    t.begin += data_start;
    t.end += data_start;
  }
  RETURN_IF_ERROR(CheckNoOverlap(tensors));
  return tensors;
}

std::optional<DType> ToDType(std::string_view safetensors_dtype) {
  const FormatDType* dtype = FindFormatDType(safetensors_dtype);
  return dtype == nullptr ? std::nullopt : dtype->dtype;
}

std::string_view SafetensorsName(DType dtype) {
  for (const FormatDType& d : kFormatDTypes) {
    if (d.dtype == dtype) return d.name;
  }
  return "";
}

std::string ShapeToString(const std::vector<int64_t>& shape) {
  constexpr size_t kMaxShown = 8;
  const size_t shown = std::min(shape.size(), kMaxShown);
  const auto end = shape.begin() + static_cast<std::ptrdiff_t>(shown);
  return absl::StrCat("[", absl::StrJoin(shape.begin(), end, ", "),
                      shown < shape.size() ? ", ..." : "", "]");
}

}  // namespace jevons
