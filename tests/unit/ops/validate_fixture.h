// What tests of argument checks share: views that nobody reads through, and what a refusal looks like.
#pragma once

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ops/validate.h"

namespace jevons {

// Memory for views that are never read through, and small index arrays.
inline float storage[4096];

inline TensorView F32(std::initializer_list<int64_t> shape) {
  return TensorView(storage, DType::kF32, shape);
}
inline TensorView I32(std::vector<int32_t>& values) {
  return TensorView(values.data(), DType::kI32, {static_cast<int64_t>(values.size())});
}

class FakeWeight : public Weight {
 public:
  using Weight::Weight;
  int64_t bytes() const override { return 0; }
};

inline void ExpectRefused(const absl::Status& status, const std::string& text) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), text);
}

}  // namespace jevons
