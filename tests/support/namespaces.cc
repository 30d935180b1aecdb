#include "tests/support/namespaces.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

absl::Status Write(const std::string& path, const std::string& text) {
  std::ofstream out(path);
  out << text << std::flush;
  return out.good() ? absl::OkStatus() : absl::PermissionDeniedError("writing " + path);
}

}  // namespace

absl::Status EnterNamespaces(int flags) {
  if (unshare(flags) == 0) return absl::OkStatus();
  const uid_t user = getuid();
  const gid_t group = getgid();
  if (unshare(CLONE_NEWUSER | flags) != 0) return absl::ErrnoToStatus(errno, "a new namespace");
  RETURN_IF_ERROR(Write("/proc/self/setgroups", "deny"));
  RETURN_IF_ERROR(Write("/proc/self/uid_map", absl::StrCat("0 ", user, " 1")));
  return Write("/proc/self/gid_map", absl::StrCat("0 ", group, " 1"));
}

absl::StatusOr<std::unique_ptr<SmallDisk>> SmallDisk::Create(int64_t bytes) {
  RETURN_IF_ERROR(EnterNamespaces(CLONE_NEWNS));
  // What is mounted from here on stays in this namespace.
  if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return absl::ErrnoToStatus(errno, "making mounts private");
  }
  std::string path = std::filesystem::temp_directory_path() / "jevons_disk_XXXXXX";
  if (mkdtemp(path.data()) == nullptr) return absl::ErrnoToStatus(errno, path);
  const std::string size = absl::StrCat("size=", bytes);
  if (mount("none", path.c_str(), "tmpfs", 0, size.c_str()) != 0) {
    const int error = errno;
    rmdir(path.c_str());
    return absl::ErrnoToStatus(error, "mounting a tmpfs");
  }
  return std::unique_ptr<SmallDisk>(new SmallDisk(path));
}

SmallDisk::~SmallDisk() {
  umount2(path_.c_str(), MNT_DETACH);
  rmdir(path_.c_str());
}

void SmallDisk::Fill() const {
  const std::string file = path_ + "/filler";
  const int fd = open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  std::vector<char> junk(1 << 16, 'x');
  for (size_t size = junk.size(); size > 0;) {
    if (write(fd, junk.data(), size) <= 0) size /= 2;
  }
  close(fd);
}

}  // namespace jevons
