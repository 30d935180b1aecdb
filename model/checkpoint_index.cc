#include "model/checkpoint_index.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "model/error_text.h"
#include "model/json_events.h"

namespace jevons {
namespace {

// Whether `name` can only be a file of the folder itself.
bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name != "." && name.find("..") == std::string_view::npos &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

class IndexReader : public JsonEvents {
 public:
  std::map<std::string, std::string> TakeMap() { return std::move(map_); }
  bool has_map() const { return has_map_; }
  const std::string& error() const { return error_; }

  bool null() override { return Other(); }
  bool boolean(bool) override { return Other(); }
  bool number_integer(int64_t) override { return Other(); }
  bool number_unsigned(uint64_t) override { return Other(); }
  bool number_float(double, const std::string&) override { return Other(); }
  bool start_array(std::size_t) override { return Open(); }
  bool end_array() override { return Close(); }

  bool start_object(std::size_t) override {
    if (depth_ == 0 || (depth_ == 1 && in_map_)) {
      ++depth_;
      return true;
    }
    return Open();
  }
  bool end_object() override { return Close(); }

  bool key(std::string& name) override {
    key_ = name;
    if (depth_ == 1) {
      in_map_ = name == "weight_map";
      if (in_map_ && has_map_) return Fail("weight_map is there twice");
      has_map_ |= in_map_;
    }
    return true;
  }

  bool string(std::string& value) override {
    if (depth_ != 2 || !in_map_) return Other();
    if (!IsPlainFileName(value)) {
      return Fail(absl::StrCat("weight_map puts ", Printable(key_), " into ", Printable(value),
                               ", which is not the name of a file in the same folder"));
    }
    if (!map_.emplace(key_, value).second) {
      return Fail(absl::StrCat("weight_map has ", Printable(key_), " twice"));
    }
    return true;
  }

 private:
  // A value that has no place in the root or in weight_map and means nothing elsewhere.
  bool Other() {
    if (depth_ == 0) return Fail("not an object");
    if (!in_map_) return true;
    return Fail(depth_ == 1 ? std::string("weight_map is not an object")
                            : absl::StrCat("weight_map: ", Printable(key_),
                                           " is not mapped to a file name"));
  }
  bool Open() {
    if (!Other()) return false;
    ++depth_;
    return true;
  }
  bool Close() {
    --depth_;
    return true;
  }
  bool Fail(std::string what) {
    error_ = std::move(what);
    return false;
  }

  int64_t depth_ = 0;
  bool in_map_ = false;
  bool has_map_ = false;
  std::string key_;
  std::map<std::string, std::string> map_;
  std::string error_;
};

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> ParseCheckpointIndex(std::string_view json) {
  IndexReader reader;
  if (!ReadJson(json, &reader)) {
    if (!reader.error().empty()) return absl::InvalidArgumentError(reader.error());
    return absl::InvalidArgumentError(
        absl::StrCat("not JSON at byte ", reader.error_offset().value_or(0)));
  }
  if (!reader.has_map()) return absl::InvalidArgumentError("weight_map is missing");
  std::map<std::string, std::string> map = reader.TakeMap();
  if (map.empty()) return absl::InvalidArgumentError("weight_map is empty");
  return map;
}

}  // namespace jevons
