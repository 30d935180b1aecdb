// Where test data lies.
#pragma once

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace jevons {

// A file or folder under tests/data.
inline std::string DataPath(const std::string& name) {
  return std::string(JEVONS_SOURCE_DIR) + "/tests/data/" + name;
}

// The demo model's checkpoint folder.
inline std::string DemoModelPath() {
  return std::string(JEVONS_SOURCE_DIR) + "/tools/demo_model/checkpoint";
}

// A file or folder of the larger data set beside the repository, which may not be there.
inline std::string SharedPath(const std::string& name) {
  return std::string(JEVONS_SHARED_DIR) + "/" + name;
}

// Notes in the test's results that it looked for `name`, so that the summary can say what the data
// decided.
inline bool HasShared(const std::string& name) {
  ::testing::Test::RecordProperty("needs_shared", name);
  return std::filesystem::exists(SharedPath(name));
}

// Skips a test whose data is not there, so that the summary counts it as skipped and not as passed.
#define SKIP_WITHOUT_SHARED(name) \
  if (!::jevons::HasShared(name)) GTEST_SKIP() << "needs ../shared/" << (name)

inline std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << "cannot read " << path;
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

}  // namespace jevons
