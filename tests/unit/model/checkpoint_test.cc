#include "model/checkpoint.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "base/random.h"
#include "gtest/gtest.h"
#include "model/checkpoint_index.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
constexpr char kIndex[] = "model.safetensors.index.json";

// Six tensors named t0 to t5; t<i> holds i, i + 0.5.
CheckpointWriter SixTensors(float shift = 0) {
  CheckpointWriter writer;
  for (int i = 0; i < 6; ++i) {
    const float v = static_cast<float>(i) + shift;
    writer.AddF32("t" + std::to_string(i), {1, 2}, {v, v + 0.5f});
  }
  return writer;
}

float FirstFloat(const Checkpoint& checkpoint, const std::string& name) {
  const auto view = checkpoint.Find(name);
  EXPECT_TRUE(view.ok()) << view.status();
  float value = -1;
  if (view.ok()) std::memcpy(&value, view->data, sizeof(value));
  return value;
}

void ExpectSixTensors(const std::string& folder) {
  const auto checkpoint = Checkpoint::Open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Names(), (std::vector<std::string>{"t0", "t1", "t2", "t3", "t4", "t5"}));
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(FirstFloat(**checkpoint, "t" + std::to_string(i)), static_cast<float>(i));
  }
}

TEST(CheckpointTest, FindGivesTypeShapeStridesAndBytes) {
  const TempFolder folder;
  CheckpointWriter writer;
  writer.AddBf16("a", {2, 3, 4}, std::vector<float>(24, 1.5f));
  writer.AddF32("scalar", {}, {42});
  writer.AddF32("empty", {0, 5}, {});
  writer.Add("f8", {"F8_E4M3", {3}, "abc"});
  writer.WriteSingle(folder.path());
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto a = (*checkpoint)->Find("a");
  ASSERT_TRUE(a.ok());
  EXPECT_EQ(a->ToString(), "bf16 [2, 3, 4]");
  EXPECT_EQ(a->stride[0], 12);
  EXPECT_EQ(a->stride[1], 4);
  EXPECT_EQ(a->stride[2], 1);
  EXPECT_TRUE(a->contiguous());
  EXPECT_EQ(std::string(a->ptr<char>(), 48), writer.Get("a").bytes);
  EXPECT_EQ(FirstFloat(**checkpoint, "scalar"), 42);
  EXPECT_EQ((*checkpoint)->Find("scalar")->rank, 0);
  EXPECT_TRUE((*checkpoint)->Find("empty")->present());
  EXPECT_EQ((*checkpoint)->Find("empty")->num_elements(), 0);
  EXPECT_EQ(std::string((*checkpoint)->Find("f8")->ptr<char>(), 3), "abc");
  EXPECT_TRUE((*checkpoint)->Has("a"));
  EXPECT_FALSE((*checkpoint)->Has("b"));
  ExpectError((*checkpoint)->Find("b"), kNotFound, {"no tensor b", folder.path()});
  const auto info = (*checkpoint)->Info("a");
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->dtype, "BF16");
  EXPECT_EQ(info->shape, (std::vector<int64_t>{2, 3, 4}));
  EXPECT_EQ(info->bytes, 48);
  EXPECT_EQ(info->file, "model.safetensors");
}

TEST(CheckpointTest, UnsupportedTypesAndRanksFailOnlyWhenAskedFor) {
  const TempFolder folder;
  CheckpointWriter writer = SixTensors();
  writer.Add("f64", {"F64", {1}, "12345678"});
  writer.Add("flags", {"BOOL", {3}, "abc"});
  writer.AddF32("deep", {1, 1, 1, 1, 2}, {1, 2});
  writer.AddF32("four", {1, 1, 1, 2}, {1, 2});
  writer.WriteSingle(folder.path());
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(FirstFloat(**checkpoint, "t3"), 3);
  EXPECT_EQ(FirstFloat(**checkpoint, "four"), 1);
  ExpectError((*checkpoint)->Find("f64"), kUnimplemented, {"f64", "F64 [1]"});
  ExpectError((*checkpoint)->Find("flags"), kUnimplemented, {"flags", "BOOL"});
  ExpectError((*checkpoint)->Find("deep"), kUnimplemented, {"deep", "4 dimensions"});
  EXPECT_EQ((*checkpoint)->Info("deep")->shape.size(), 5u);
  EXPECT_EQ((*checkpoint)->Info("f64")->dtype, "F64");
}

TEST(CheckpointTest, MisalignedDataIsReadable) {
  for (int padding : {0, 1, 3, 7}) {
    const TempFolder folder;
    const CheckpointWriter writer = SixTensors();
    folder.Write("model.safetensors", writer.FileBytes(writer.Names(), "null", padding));
    ExpectSixTensors(folder.path());
    const auto checkpoint = Checkpoint::Open(folder.path());
    ASSERT_TRUE(checkpoint.ok());
    const auto address = reinterpret_cast<uintptr_t>((*checkpoint)->Find("t0")->data);
    EXPECT_EQ(address % 8, static_cast<uintptr_t>(padding));
  }
}

TEST(CheckpointTest, EveryFormOfMetadataOpens) {
  for (const char* metadata : {"", "null", "{}", R"({"format":"pt"})"}) {
    const TempFolder folder;
    const CheckpointWriter writer = SixTensors();
    folder.Write("model.safetensors", writer.FileBytes(writer.Names(), metadata, 64));
    ExpectSixTensors(folder.path());
  }
}

TEST(CheckpointTest, ReleasedTensorsCanBeReadAgain) {
  const TempFolder folder;
  CheckpointWriter writer;
  std::vector<float> values(50000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  writer.AddF32("a", {50000}, values);
  writer.AddF32("b", {50000}, values);
  writer.WriteSingle(folder.path());
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok());
  const std::string want = writer.Get("a").bytes;
  for (int round = 0; round < 3; ++round) {
    for (const char* name : {"a", "b"}) {
      const auto view = (*checkpoint)->Find(name);
      EXPECT_EQ(std::memcmp(view->data, want.data(), want.size()), 0);
      (*checkpoint)->Release(name);
    }
  }
  (*checkpoint)->Release("no such tensor");
}

TEST(CheckpointTest, ShardsAndOneFileGiveTheSameTensors) {
  for (int num_shards : {1, 2, 3, 6}) {
    const TempFolder folder;
    SixTensors().WriteShards(folder.path(), num_shards);
    ExpectSixTensors(folder.path());
  }
  const TempFolder folder;
  SixTensors().WriteSingle(folder.path());
  ExpectSixTensors(folder.path());
}

TEST(CheckpointTest, StrayFilesBesideTheIndexAreIgnored) {
  const TempFolder folder;
  SixTensors().WriteShards(folder.path(), 2);
  const CheckpointWriter other = SixTensors(100);
  folder.Write("model-old.safetensors", other.FileBytes());
  folder.Write("model.safetensors", other.FileBytes());
  folder.Write("broken.safetensors", "garbage");
  folder.Write("config.json", "{}");
  ExpectSixTensors(folder.path());
}

TEST(CheckpointTest, OneFileOfThePublishedNameIsTakenAlone) {
  const TempFolder folder;
  SixTensors().WriteSingle(folder.path());
  folder.Write("model-old.safetensors", SixTensors(100).FileBytes());
  ExpectSixTensors(folder.path());
}

TEST(CheckpointTest, WithoutAnIndexAllFilesAreTaken) {
  const TempFolder folder;
  const CheckpointWriter writer = SixTensors();
  folder.Write("a.safetensors", writer.FileBytes({"t0", "t2", "t4"}));
  folder.Write("b.safetensors", writer.FileBytes({"t1", "t3", "t5"}));
  ExpectSixTensors(folder.path());
  folder.Write("c.safetensors", writer.FileBytes({"t3"}));
  ExpectError(Checkpoint::Open(folder.path()), kInvalid,
              {"tensor t3", "b.safetensors", "c.safetensors", kIndex});
}

TEST(CheckpointTest, TheIndexDecidesWhichOfTwoFilesCounts) {
  const TempFolder folder;
  folder.Write("a.safetensors", SixTensors().FileBytes());
  folder.Write("b.safetensors", SixTensors(100).FileBytes());
  nlohmann::json map;
  for (int i = 0; i < 6; ++i) {
    map["t" + std::to_string(i)] = i < 3 ? "a.safetensors" : "b.safetensors";
  }
  folder.Write(kIndex, nlohmann::json({{"weight_map", map}}).dump());
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(FirstFloat(**checkpoint, "t2"), 2);
  EXPECT_EQ(FirstFloat(**checkpoint, "t3"), 103);
}

TEST(CheckpointTest, AMissingShardIsNamedWithTheIndex) {
  const TempFolder folder;
  SixTensors().WriteShards(folder.path(), 3);
  folder.Remove(CheckpointWriter::ShardName(1, 3));
  ExpectError(Checkpoint::Open(folder.path()), kNotFound,
              {CheckpointWriter::ShardName(1, 3), folder.Path(kIndex), "names 3 files"});
  // A link to a file that never arrived is missing too.
  std::filesystem::create_symlink(folder.Path("blob"),
                                  folder.Path(CheckpointWriter::ShardName(1, 3)));
  ExpectError(Checkpoint::Open(folder.path()), kNotFound, {CheckpointWriter::ShardName(1, 3)});
}

TEST(CheckpointTest, ManyMissingShardsAreCountedAndTheFirstFiveNamed) {
  const TempFolder folder;
  nlohmann::json map;
  for (int i = 0; i < 9; ++i) {
    map["t" + std::to_string(i)] = "f" + std::to_string(i) + ".safetensors";
  }
  folder.Write(kIndex, nlohmann::json({{"weight_map", map}}).dump());
  ExpectError(Checkpoint::Open(folder.path()), kNotFound,
              {"missing (9): ", "f4.safetensors and 4 more"});
}

TEST(CheckpointTest, ShardsOpenThroughLinks) {
  const TempFolder blobs;
  const TempFolder folder;
  SixTensors().WriteShards(blobs.path(), 2);
  for (const std::string& name : {std::string(kIndex), CheckpointWriter::ShardName(0, 2),
                                  CheckpointWriter::ShardName(1, 2)}) {
    std::filesystem::create_symlink(blobs.Path(name), folder.Path(name));
  }
  ExpectSixTensors(folder.path());
}

TEST(CheckpointTest, IndexEntriesThatTheirFileLacksAreListed) {
  const TempFolder folder;
  const CheckpointWriter writer = SixTensors();
  writer.WriteShards(folder.path(), 2);
  // The second shard should hold t1, t3 and t5.
  folder.Write(CheckpointWriter::ShardName(1, 2), writer.FileBytes({"t3"}));
  ExpectError(Checkpoint::Open(folder.path()), kInvalid,
              {kIndex, "do not have (2): ", "t1 (model-00002-of-00002.safetensors)", "t5 ("});
  nlohmann::json map;
  for (int i = 0; i < 20; ++i) map["gone" + std::to_string(10 + i)] = "a.safetensors";
  folder.Write("a.safetensors", writer.FileBytes());
  folder.Write(kIndex, nlohmann::json({{"weight_map", map}}).dump());
  ExpectError(Checkpoint::Open(folder.path()), kInvalid,
              {"do not have (20): ", "gone14 (a.safetensors) and 15 more"});
}

TEST(CheckpointTest, AnIndexOfAnotherFormIsAnError) {
  const struct {
    const char* text;
    const char* what;
  } kCases[] = {
      {"", "not JSON at byte"},
      {"{", "not JSON at byte"},
      {"[]", "not an object"},
      {"{}", "weight_map is missing"},
      {R"({"metadata":{"weight_map":{"a":"b"}}})", "weight_map is missing"},
      {R"({"weight_map":{}})", "weight_map is empty"},
      {R"({"weight_map":null})", "weight_map is not an object"},
      {R"({"weight_map":"a"})", "weight_map is not an object"},
      {R"({"weight_map":["a"]})", "weight_map is not an object"},
      {R"({"weight_map":{"a":1}})", "a is not mapped to a file name"},
      {R"({"weight_map":{"a":["b"]}})", "a is not mapped to a file name"},
      {R"({"weight_map":{"a":{"b":"c"}}})", "a is not mapped to a file name"},
      {R"({"weight_map":{"a":"x","a":"y"}})", "a twice"},
      {R"({"weight_map":{"a":"x"},"weight_map":{"b":"x"}})", "weight_map is there twice"},
      {R"({"weight_map":{"a":"../x.safetensors"}})", "../x.safetensors"},
      {R"({"weight_map":{"a":"sub/x.safetensors"}})", "sub/x.safetensors"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", "/etc/passwd"},
      {R"({"weight_map":{"a":".."}})", "not the name of a file"},
      {R"({"weight_map":{"a":"."}})", "not the name of a file"},
      {R"({"weight_map":{"a":""}})", "not the name of a file"},
      {R"({"weight_map":{"a":"x\u0000.safetensors"}})", "not the name of a file"},
  };
  const TempFolder folder;
  SixTensors().WriteSingle(folder.path());
  for (const auto& c : kCases) {
    folder.Write(kIndex, c.text);
    ExpectError(Checkpoint::Open(folder.path()), kInvalid, {folder.Path(kIndex), c.what});
  }
}

TEST(CheckpointTest, IndexReadingSkipsWhatIsNotWeightMap) {
  const auto map = ParseCheckpointIndex(
      R"({"metadata":{"total_size":1,"x":[1,{"y":"z"}],"n":null},"weight_map":{"a":"f"},"more":[{}]})");
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(*map, (std::map<std::string, std::string>{{"a", "f"}}));
}

TEST(CheckpointTest, EveryTruncationIsAnErrorThatNamesTheFile) {
  const TempFolder folder;
  const CheckpointWriter writer = SixTensors();
  const std::string file = writer.FileBytes();
  for (size_t size = 0; size < file.size(); size += 3) {
    folder.Write("model.safetensors", std::string_view(file).substr(0, size));
    ExpectError(Checkpoint::Open(folder.path()), kInvalid, {folder.Path("model.safetensors: ")});
  }
}

TEST(CheckpointTest, FoldersAndMissingThingsAreClearErrors) {
  const TempFolder folder;
  ExpectError(Checkpoint::Open(folder.path()), kNotFound,
              {folder.path(), "holds no checkpoint", kIndex, "*.safetensors"});
  ExpectError(Checkpoint::Open(folder.Path("nowhere")), kNotFound, {"there is no folder"});
  folder.Write("file", "x");
  ExpectError(Checkpoint::Open(folder.Path("file")), kInvalid, {"is not a folder"});
  std::filesystem::create_directory(folder.Path("model.safetensors"));
  ExpectError(Checkpoint::Open(folder.path()), kInvalid,
              {folder.Path("model.safetensors"), "is a folder, not a file"});
  std::filesystem::remove(folder.Path("model.safetensors"));
  ASSERT_EQ(mkfifo(folder.Path("model.safetensors").c_str(), 0600), 0);
  ExpectError(Checkpoint::Open(folder.path()), kInvalid, {"is not a regular file"});
}

TEST(CheckpointTest, FilesThatMayNotBeReadAreNamed) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read everything";
  const TempFolder folder;
  SixTensors().WriteSingle(folder.path());
  ASSERT_EQ(chmod(folder.Path("model.safetensors").c_str(), 0), 0);
  ExpectError(Checkpoint::Open(folder.path()), absl::StatusCode::kPermissionDenied,
              {folder.Path("model.safetensors")});
}

TEST(CheckpointTest, RandomDamageToAFileNeverCrashes) {
  const uint64_t seed = 11;
  SCOPED_TRACE(seed);
  Random random(seed);
  const CheckpointWriter writer = SixTensors();
  const std::string good = writer.FileBytes();
  const TempFolder folder;
  for (int i = 0; i < 400; ++i) {
    std::string file = good;
    const size_t at = static_cast<size_t>(random.Below(static_cast<int64_t>(file.size())));
    if (i % 3 == 0) file.resize(at);
    if (i % 3 == 1) file[at] = static_cast<char>(random.Below(256));
    if (i % 3 == 2) file[at % 700] = static_cast<char>('0' + random.Below(10));
    folder.Write("model.safetensors", file);
    const auto checkpoint = Checkpoint::Open(folder.path());
    if (!checkpoint.ok()) continue;
    double sum = 0;
    for (const std::string& name : (*checkpoint)->Names()) {
      const auto view = (*checkpoint)->Find(name);
      if (!view.ok()) continue;
      const int64_t bytes = view->num_elements() * DTypeBytes(view->dtype);
      for (int64_t b = 0; b < bytes; ++b) sum += view->ptr<char>()[b];
      (*checkpoint)->Release(name);
    }
    EXPECT_TRUE(sum == sum);
  }
}

}  // namespace
}  // namespace jevons
