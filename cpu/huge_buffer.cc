#include "cpu/huge_buffer.h"

#include <sys/mman.h>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
// Far above every machine, far below overflow.
constexpr int64_t kMaxBytes = int64_t{1} << 46;

}  // namespace

HugeBuffer::~HugeBuffer() {
  if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
}

absl::StatusOr<HugeBuffer> HugeBuffer::Allocate(int64_t bytes) {
  if (bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("memory size must be at least 0, got ", bytes));
  }
  const auto exhausted = [bytes] {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes"));
  };
  if (bytes > kMaxBytes) return exhausted();

  HugeBuffer out;
  out.bytes_ = bytes;
  out.mapped_bytes_ = bytes < kHugePage ? (bytes > 0 ? bytes : 1) : bytes + kHugePage;
  void* mapped =
      mmap(nullptr, out.mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return exhausted();
  out.mapped_ = mapped;
  out.data_ = static_cast<uint8_t*>(mapped);
  if (bytes < kHugePage) return out;

  const auto address = reinterpret_cast<uintptr_t>(mapped);
  out.data_ += (kHugePage - address % kHugePage) % kHugePage;
  // A wish only: without huge pages all works, with more misses in the address cache.
  madvise(out.data_, bytes, MADV_HUGEPAGE);
  return out;
}

}  // namespace jevons
