#include "model/checkpoint_fingerprint.h"

#include "gtest/gtest.h"
#include "tests/support/checkpoint_writer.h"

namespace jevons {
namespace {

std::string Fingerprint(const std::string& folder) {
  const auto out = CheckpointFingerprint(folder);
  EXPECT_TRUE(out.ok()) << out.status();
  return out.value_or("");
}

TEST(CheckpointFingerprintTest, IsTheSameForACopyAndAnotherForAnotherSeed) {
  const TempFolder folder, copy, other;
  WriteRandomModel(folder.path(), TinyConfigJson(), 1);
  WriteRandomModel(copy.path(), TinyConfigJson(), 1);
  WriteRandomModel(other.path(), TinyConfigJson(), 2);
  EXPECT_EQ(Fingerprint(folder.path()), Fingerprint(copy.path()));
  EXPECT_NE(Fingerprint(folder.path()), Fingerprint(other.path()));
}

TEST(CheckpointFingerprintTest, SeesEveryByteOfJsonAndTheEndsOfLargeFiles) {
  const TempFolder folder;
  const std::string weights(1 << 20, 'w');
  folder.Write("config.json", "{\"a\": 1}");
  folder.Write("model.safetensors", weights);
  const std::string before = Fingerprint(folder.path());
  folder.Write("config.json", "{\"a\": 2}");
  EXPECT_NE(Fingerprint(folder.path()), before);
  folder.Write("config.json", "{\"a\": 1}");
  EXPECT_EQ(Fingerprint(folder.path()), before);
  for (const size_t at : {size_t{0}, weights.size() - 1}) {
    std::string changed = weights;
    changed[at] = 'x';
    folder.Write("model.safetensors", changed);
    EXPECT_NE(Fingerprint(folder.path()), before) << at;
  }
}

TEST(CheckpointFingerprintTest, SeesNamesAndSizesAndNothingElse) {
  const TempFolder folder;
  folder.Write("a.safetensors", "weights");
  const std::string before = Fingerprint(folder.path());
  folder.Write("README.md", "text");
  EXPECT_EQ(Fingerprint(folder.path()), before);
  folder.Write("b.safetensors", "");
  EXPECT_NE(Fingerprint(folder.path()), before);
}

TEST(CheckpointFingerprintTest, NoFolderAndNoCheckpointAreNamed) {
  const TempFolder folder;
  EXPECT_EQ(CheckpointFingerprint(folder.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(CheckpointFingerprint("/no/such/folder").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace jevons
