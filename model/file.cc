#include "model/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

struct OpenFile {
  int fd;
  int64_t size;
};

// The caller closes the descriptor.
absl::StatusOr<OpenFile> OpenRegular(const std::string& path) {
  // Without O_NONBLOCK a named pipe would wait here for a writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct stat info;
  if (fstat(fd, &info) != 0) {
    const int error = errno;
    close(fd);
    return absl::ErrnoToStatus(error, absl::StrCat("cannot read ", path));
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(
        path, S_ISDIR(info.st_mode) ? " is a folder, not a file" : " is not a regular file"));
  }
  return OpenFile{fd, static_cast<int64_t>(info.st_size)};
}

}  // namespace

bool PathExists(const std::string& path) {
  struct stat info;
  return lstat(path.c_str(), &info) == 0;
}

absl::StatusOr<std::string> ReadTextFile(const std::string& path, int64_t max_bytes) {
  ASSIGN_OR_RETURN(const OpenFile file, OpenRegular(path));
  const absl::Cleanup closer = [&] { close(file.fd); };
  if (file.size > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", file.size, " bytes; at most ", max_bytes, " are read"));
  }
  std::string text(static_cast<size_t>(file.size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = read(file.fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(const OpenFile file, OpenRegular(path));
  const absl::Cleanup closer = [&] { close(file.fd); };
  if (file.size == 0) return MappedFile(nullptr, 0);
  void* data = mmap(nullptr, static_cast<size_t>(file.size), PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", path));
  return MappedFile(static_cast<const char*>(data), file.size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), static_cast<size_t>(size_));
}

void MappedFile::Fetch(int64_t begin, int64_t end) const {
  // In pieces, so that nothing waits long for the system's lock on the address space.
  constexpr int64_t kPiece = int64_t{4} << 20;
  const int64_t page = sysconf(_SC_PAGESIZE);
  if (data_ == nullptr || begin >= end) return;
  for (int64_t at = begin / page * page; at < end; at += kPiece) {
    char* const from = const_cast<char*>(data_) + at;
    const size_t bytes = static_cast<size_t>(std::min(kPiece, end - at));
    // Linux before 5.14 takes a hint alone.
    if (madvise(from, bytes, MADV_POPULATE_READ) != 0) madvise(from, bytes, MADV_WILLNEED);
  }
}

void MappedFile::Release(int64_t begin, int64_t end) const {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t first = (begin + page - 1) / page * page;
  // The last page of the file is padding after its end, so it may go with the tensor.
  const int64_t last = end == size_ ? end : end / page * page;
  if (data_ == nullptr || first >= last) return;
  madvise(const_cast<char*>(data_) + first, static_cast<size_t>(last - first), MADV_DONTNEED);
}

}  // namespace jevons
