// Large aligned memory in huge pages, where the system has them.
#pragma once

#include <cstdint>
#include <utility>

#include "base/status.h"

namespace jevons {

// Zeroed pages of its own; moved, never copied. Thread-compatible.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  HugeBuffer(HugeBuffer&& other) noexcept { Swap(other); }
  HugeBuffer& operator=(HugeBuffer&& other) noexcept {
    Swap(other);
    return *this;
  }
  ~HugeBuffer();

  // RESOURCE_EXHAUSTED with the size where there is no memory. Aligned to 2 MiB from 2 MiB on, to
  // a page below. Pages come with their first use, so an allocation costs nothing by itself.
  static absl::StatusOr<HugeBuffer> Allocate(int64_t bytes);

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void Swap(HugeBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
  }

  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
  void* mapped_ = nullptr;
  int64_t mapped_bytes_ = 0;
};

}  // namespace jevons
