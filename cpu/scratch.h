// Aligned memory that grows to the largest use and is then kept: steps after the first allocate
// nothing.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "hwy/aligned_allocator.h"

namespace jevons::fast {

// Thread-compatible; for one thread_local each.
class Scratch {
 public:
  // Room for `count` floats with undefined values, valid until the next call. Aligned for every
  // vector.
  float* Get(int64_t count) {
    if (count > capacity_) {
      data_ = hwy::AllocateAligned<float>(static_cast<size_t>(count));
      CHECK(data_ != nullptr);
      capacity_ = count;
    }
    return data_.get();
  }

 private:
  hwy::AlignedFreeUniquePtr<float[]> data_;
  int64_t capacity_ = 0;
};

}  // namespace jevons::fast
