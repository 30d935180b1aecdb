// Assertions about absl::Status.
#pragma once

#include <initializer_list>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace jevons {

inline const absl::Status& ToStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& ToStatus(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

// The code is `code` and the text holds each of `parts`.
template <typename T>
void ExpectError(const T& result, absl::StatusCode code, std::initializer_list<std::string> parts) {
  const absl::Status status = ToStatus(result);
  const std::string text(status.message());
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& part : parts) {
    EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in: " << status;
  }
}

}  // namespace jevons
