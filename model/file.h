// Small files read whole, large files mapped; errors name the path and what the system said.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace jevons {

// Whether something of this name is there, a dangling link included.
bool PathExists(const std::string& path);

// The bytes of a regular file. NOT_FOUND, PERMISSION_DENIED; INVALID_ARGUMENT for a folder or more
// than `max_bytes`.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes);

// A whole regular file in memory, read only and private. The file must not shrink while it is
// mapped. Thread-safe.
class MappedFile {
 public:
  // Errors as ReadTextFile. An empty file has no bytes.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::string_view bytes() const { return {data_, static_cast<size_t>(size_)}; }
  // Reads the pages of [begin, end) into this process. A part that the file has lost is left out.
  void Fetch(int64_t begin, int64_t end) const;
  // Unmaps the pages that lie wholly in [begin, end) from this process; they are read again when
  // touched.
  void Release(int64_t begin, int64_t end) const;

 private:
  MappedFile(const char* data, int64_t size) : data_(data), size_(size) {}

  const char* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace jevons
