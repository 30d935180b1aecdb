#include "model/checkpoint_fingerprint.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/file.h"

namespace jevons {
namespace {

constexpr int64_t kSampleBytes = 4096;
constexpr int64_t kNumSamples = 8;  // from the first bytes to the last ones, evenly

// FNV-1a.
class Hash {
 public:
  void Add(std::string_view bytes) {
    for (const char c : bytes) {
      value_ = (value_ ^ static_cast<uint8_t>(c)) * uint64_t{0x100000001b3};
    }
  }
  void Add(int64_t number) { Add(absl::StrCat(number, ";")); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

bool IsWeights(const std::string& name) { return name.ends_with(".safetensors"); }

void AddFile(const std::string& name, std::string_view bytes, Hash& hash) {
  hash.Add(name);
  const int64_t size = static_cast<int64_t>(bytes.size());
  hash.Add(size);
  if (!IsWeights(name) || size <= kNumSamples * kSampleBytes) return hash.Add(bytes);
  for (int64_t i = 0; i < kNumSamples; ++i) {
    const int64_t begin = (size - kSampleBytes) * i / (kNumSamples - 1);
    hash.Add(bytes.substr(begin, kSampleBytes));
  }
}

}  // namespace

absl::StatusOr<std::string> CheckpointFingerprint(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (IsWeights(name) || name.ends_with(".json")) names.push_back(name);
  }
  if (error) return absl::NotFoundError(absl::StrCat("model: no folder ", folder));
  if (names.empty()) {
    return absl::NotFoundError(absl::StrCat("model: no checkpoint in the folder ", folder));
  }
  std::sort(names.begin(), names.end());
  Hash hash;
  int64_t num_bytes = 0;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(absl::StrCat(folder, "/", name)));
    AddFile(name, file.bytes(), hash);
    num_bytes += static_cast<int64_t>(file.bytes().size());
  }
  return absl::StrFormat("%d files, %d bytes, %016x", names.size(), num_bytes, hash.value());
}

}  // namespace jevons
