#include "model/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint_index.h"
#include "model/error_text.h"
#include "model/file.h"
#include "model/safetensors.h"

namespace jevons {
namespace {

constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kSingleName[] = "model.safetensors";
constexpr char kSuffix[] = ".safetensors";
constexpr int64_t kMaxIndexBytes = 256 << 20;
constexpr size_t kMaxListed = 5;

absl::Status Prefixed(const absl::Status& status, const std::string& prefix) {
  return absl::Status(status.code(), absl::StrCat(prefix, ": ", status.message()));
}

class MappedCheckpoint : public Checkpoint {
 public:
  explicit MappedCheckpoint(std::string folder) : folder_(std::move(folder)) {}

  absl::Status OpenIndexed();
  absl::Status OpenSingle() { return AddAll(kSingleName); }
  absl::Status OpenAll();

  absl::StatusOr<TensorView> Find(std::string_view name) const override;
  bool Has(std::string_view name) const override { return tensors_.contains(name); }
  absl::StatusOr<TensorInfo> Info(std::string_view name) const override;
  std::vector<std::string> Names() const override;
  void Fetch(std::string_view name) const override;
  void Release(std::string_view name) const override;

 private:
  struct File {
    std::string name;
    MappedFile map;
  };
  struct Entry {
    size_t file_idx;
    StoredTensor stored;
  };

  std::string Path(const std::string& name) const { return absl::StrCat(folder_, "/", name); }
  // Maps a file, appends it to files_ and returns its tensors.
  absl::StatusOr<std::vector<StoredTensor>> OpenFile(const std::string& name);
  // Takes every tensor of a file.
  absl::Status AddAll(const std::string& name);
  absl::Status CheckShardsExist(const std::map<std::string, std::vector<std::string>>& by_file);
  absl::StatusOr<const Entry*> Lookup(std::string_view name) const;

  std::string folder_;
  std::vector<File> files_;
  std::map<std::string, Entry, std::less<>> tensors_;
};

absl::StatusOr<std::vector<StoredTensor>> MappedCheckpoint::OpenFile(const std::string& name) {
  ASSIGN_OR_RETURN(MappedFile map, MappedFile::Open(Path(name)));
  auto tensors = ParseSafetensors(map.bytes());
  if (!tensors.ok()) return Prefixed(tensors.status(), Path(name));
  files_.push_back({name, std::move(map)});
  return tensors;
}

absl::Status MappedCheckpoint::AddAll(const std::string& name) {
  ASSIGN_OR_RETURN(std::vector<StoredTensor> tensors, OpenFile(name));
  const size_t file_idx = files_.size() - 1;
  for (StoredTensor& t : tensors) {
    const std::string key = t.name;
    const auto [at, added] = tensors_.emplace(key, Entry{file_idx, std::move(t)});
    if (added) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        folder_, ": tensor ", Printable(key), " is both in ", files_[at->second.file_idx].name,
        " and in ", name, ", and there is no ", kIndexName, " that says which one counts"));
  }
  return absl::OkStatus();
}

absl::Status MappedCheckpoint::CheckShardsExist(
    const std::map<std::string, std::vector<std::string>>& by_file) {
  std::vector<std::string> missing;
  for (const auto& [file, names] : by_file) {
    std::error_code error;
    // A dangling link counts as missing: that is what an interrupted download leaves behind.
    if (!std::filesystem::exists(Path(file), error) && !error) missing.push_back(Printable(file));
  }
  if (missing.empty()) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat(Path(kIndexName), " names ", by_file.size(), " files; missing (", missing.size(),
                   "): ", FirstOf(missing, kMaxListed), "; is the download complete?"));
}

absl::Status MappedCheckpoint::OpenIndexed() {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(Path(kIndexName), kMaxIndexBytes));
  const auto map = ParseCheckpointIndex(text);
  if (!map.ok()) return Prefixed(map.status(), Path(kIndexName));
  std::map<std::string, std::vector<std::string>> by_file;
  for (const auto& [name, file] : *map) by_file[file].push_back(name);
  RETURN_IF_ERROR(CheckShardsExist(by_file));
  std::vector<std::string> absent;
  for (const auto& [file, names] : by_file) {
    ASSIGN_OR_RETURN(std::vector<StoredTensor> tensors, OpenFile(file));
    std::map<std::string_view, StoredTensor*> stored;
    for (StoredTensor& t : tensors) stored[t.name] = &t;
    for (const std::string& name : names) {
      const auto at = stored.find(name);
      if (at == stored.end()) {
        absent.push_back(absl::StrCat(Printable(name), " (", file, ")"));
      } else {
        tensors_.emplace(name, Entry{files_.size() - 1, *at->second});
      }
    }
  }
  if (absent.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(Path(kIndexName), " names tensors that their files do not have (", absent.size(),
                   "): ", FirstOf(absent, kMaxListed)));
}

absl::Status MappedCheckpoint::OpenAll() {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder_, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(kSuffix)) names.push_back(name);
  }
  if (error) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot list the folder ", folder_));
  }
  if (names.empty()) {
    return absl::NotFoundError(
        absl::StrCat(folder_, " holds no checkpoint: neither ", kIndexName, " nor any *", kSuffix));
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) RETURN_IF_ERROR(AddAll(name));
  return absl::OkStatus();
}

absl::StatusOr<const MappedCheckpoint::Entry*> MappedCheckpoint::Lookup(
    std::string_view name) const {
  const auto at = tensors_.find(name);
  if (at != tensors_.end()) return &at->second;
  return absl::NotFoundError(absl::StrCat(folder_, " has no tensor ", Printable(name)));
}

absl::StatusOr<TensorView> MappedCheckpoint::Find(std::string_view name) const {
  ASSIGN_OR_RETURN(const Entry* entry, Lookup(name));
  const StoredTensor& stored = entry->stored;
  const std::optional<DType> dtype = ToDType(stored.dtype);
  if (!dtype || stored.shape.size() > TensorView::kMaxRank) {
    return absl::UnimplementedError(
        absl::StrCat("tensor ", Printable(name), " is ", stored.dtype, " ",
                     ShapeToString(stored.shape), "; supported are F32, F16, BF16, F8_E4M3, I32, ",
                     "I64, U8 and at most ", TensorView::kMaxRank, " dimensions"));
  }
  TensorView view;
  view.data = const_cast<char*>(files_[entry->file_idx].map.bytes().data() + stored.begin);
  view.dtype = *dtype;
  view.rank = static_cast<int32_t>(stored.shape.size());
  int64_t next = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = stored.shape[static_cast<size_t>(i)];
    view.stride[i] = next;
    next *= view.shape[i];
  }
  return view;
}

absl::StatusOr<TensorInfo> MappedCheckpoint::Info(std::string_view name) const {
  ASSIGN_OR_RETURN(const Entry* entry, Lookup(name));
  const StoredTensor& stored = entry->stored;
  return TensorInfo{stored.dtype, stored.shape, stored.bytes(), files_[entry->file_idx].name};
}

std::vector<std::string> MappedCheckpoint::Names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, entry] : tensors_) names.push_back(name);
  return names;
}

void MappedCheckpoint::Fetch(std::string_view name) const {
  const auto at = tensors_.find(name);
  if (at == tensors_.end()) return;
  const Entry& entry = at->second;
  files_[entry.file_idx].map.Fetch(entry.stored.begin, entry.stored.end);
}

void MappedCheckpoint::Release(std::string_view name) const {
  const auto at = tensors_.find(name);
  if (at == tensors_.end()) return;
  const Entry& entry = at->second;
  files_[entry.file_idx].map.Release(entry.stored.begin, entry.stored.end);
}

}  // namespace

absl::StatusOr<TensorInfo> Checkpoint::Info(std::string_view name) const {
  ASSIGN_OR_RETURN(const TensorView view, Find(name));
  const auto shape_end = view.shape.begin() + view.rank;
  return TensorInfo{std::string(SafetensorsName(view.dtype)),
                    std::vector<int64_t>(view.shape.begin(), shape_end),
                    view.num_elements() * DTypeBytes(view.dtype), ""};
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& folder) {
  std::error_code error;
  const auto type = std::filesystem::status(folder, error).type();
  if (type == std::filesystem::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat("there is no folder ", folder));
  }
  if (type == std::filesystem::file_type::none) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot open the folder ", folder));
  }
  if (type != std::filesystem::file_type::directory) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, " is not a folder; a checkpoint is a folder with config.json"));
  }
  auto checkpoint = std::make_unique<MappedCheckpoint>(folder);
  const bool indexed = PathExists(absl::StrCat(folder, "/", kIndexName));
  const bool single = PathExists(absl::StrCat(folder, "/", kSingleName));
  RETURN_IF_ERROR(indexed  ? checkpoint->OpenIndexed()
                  : single ? checkpoint->OpenSingle()
                           : checkpoint->OpenAll());
  return checkpoint;
}

float LoadValue(const TensorView& tensor, int64_t index) {
  const char* at = static_cast<const char*>(tensor.data) + index * DTypeBytes(tensor.dtype);
  uint16_t half = 0;
  float single = 0;
  switch (tensor.dtype) {
    case DType::kF32:
      std::memcpy(&single, at, sizeof(single));
      return single;
    case DType::kBF16:
      std::memcpy(&half, at, sizeof(half));
      return Bf16ToFloat(half);
    case DType::kF16:
      std::memcpy(&half, at, sizeof(half));
      return F16ToFloat(half);
    case DType::kF8E4M3:
      return F8E4M3ToFloat(static_cast<uint8_t>(*at));
    default:
      CHECK(false);
  }
  return 0;
}

}  // namespace jevons
