// Namespaces of the kernel for tests that change what a whole machine has.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"

namespace jevons {

// Moves the calling thread, and those that it starts from now on, into new namespaces, as
// unshare(flags). Without root they belong to a new user namespace, which only a process of one
// thread can enter: call it from main's thread before others are started. The error says what the
// machine does not permit.
absl::Status EnterNamespaces(int flags);

// A small file system in memory that only this process and its children see. Thread-compatible.
class SmallDisk {
 public:
  // As EnterNamespaces, from main's thread.
  static absl::StatusOr<std::unique_ptr<SmallDisk>> Create(int64_t bytes);
  ~SmallDisk();

  const std::string& path() const { return path_; }
  // Until not a byte more can be written.
  void Fill() const;

 private:
  explicit SmallDisk(const std::string& path) : path_(path) {}

  const std::string path_;
};

}  // namespace jevons
