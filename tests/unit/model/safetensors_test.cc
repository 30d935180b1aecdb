#include "model/safetensors.h"

#include "base/random.h"
#include "gtest/gtest.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/status_matchers.h"

namespace jevons {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

// A file of this header with `data_bytes` bytes of data.
absl::StatusOr<std::vector<StoredTensor>> Parse(const std::string& header, size_t data_bytes = 64) {
  return ParseSafetensors(SafetensorsBytes(header, std::string(data_bytes, 'x')));
}

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

TEST(SafetensorsTest, ReadsEntriesInAnyOrderWithGaps) {
  const std::string header = "{" + Entry("b", "BF16", "[2,3]", "[16,28]") + "," +
                             Entry("a", "F32", "[]", "[0,4]") + "," +
                             Entry("none", "F32", "[0,7]", "[4,4]") + "}";
  const auto tensors = Parse(header);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  const StoredTensor& b = (*tensors)[0];
  const int64_t data = 8 + static_cast<int64_t>(header.size());
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, "BF16");
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.begin, data + 16);
  EXPECT_EQ(b.end, data + 28);
  EXPECT_EQ((*tensors)[1].bytes(), 4);
  EXPECT_TRUE((*tensors)[1].shape.empty());
  EXPECT_EQ((*tensors)[2].bytes(), 0);
}

TEST(SafetensorsTest, FieldsOfAnEntryComeInAnyOrder) {
  const auto tensors = Parse(R"({"x":{"data_offsets":[0,4],"shape":[4],"dtype":"U8"},)"
                             R"("y":{"shape":[2],"dtype":"F16","data_offsets":[4,8]}})");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ((*tensors)[1].dtype, "F16");
  EXPECT_EQ((*tensors)[1].shape, std::vector<int64_t>{2});
}

TEST(SafetensorsTest, MetadataIsNoTensorWhateverItHolds) {
  const std::string x = Entry("x", "U8", "[4]", "[0,4]");
  for (const char* metadata :
       {"null", "{}", R"({"format":"pt"})", R"({"a":{"b":[1,{"dtype":3}]},"dtype":null})", "[]",
        "\"text\"", "1", "-1.5", "true"}) {
    for (const std::string& header : {"{\"__metadata__\":" + std::string(metadata) + "," + x + "}",
                                      "{" + x + ",\"__metadata__\":" + metadata + "}"}) {
      const auto tensors = Parse(header);
      ASSERT_TRUE(tensors.ok()) << header << " " << tensors.status();
      ASSERT_EQ(tensors->size(), 1u) << header;
      EXPECT_EQ((*tensors)[0].name, "x");
    }
  }
  EXPECT_TRUE(Parse("{" + x + "}").ok());
  EXPECT_TRUE(Parse("{" + x + "}        ").ok());
  EXPECT_TRUE(Parse("{}").ok());
}

TEST(SafetensorsTest, ALengthOutsideTheFileOrTheLimitIsAnError) {
  ExpectError(ParseSafetensors(""), kInvalid, {"0 bytes"});
  ExpectError(ParseSafetensors("1234567"), kInvalid, {"7 bytes", "8"});
  ExpectError(ParseSafetensors(std::string(8, '\xFF')), kInvalid,
              {"18446744073709551615", "100000000"});
  std::string file = SafetensorsBytes("{}");
  file[0] = 3;
  ExpectError(ParseSafetensors(file), kInvalid, {"ends at byte 11", "10 bytes", "cut short"});
  file[0] = 2;
  EXPECT_TRUE(ParseSafetensors(file).ok());
  file[3] = '\x7F';
  ExpectError(ParseSafetensors(file), kInvalid, {"at most 100000000"});
}

TEST(SafetensorsTest, AHeaderThatIsNotJsonIsAnError) {
  for (const char* header :
       {"", " ", "{", "{\"x\"", "{}}", "{} x", "{'x':1}", "\xEF\xBB\xBF", "{,}"}) {
    ExpectError(Parse(header), kInvalid, {"not JSON at its byte"});
  }
  ExpectError(Parse("{\"\xC3\x28\":1}"), kInvalid, {"not JSON"});
  ExpectError(Parse(std::string("{}\0\0", 4)), kInvalid, {"not JSON"});
  ExpectError(Parse("[]"), kInvalid, {"the header is a list"});
  ExpectError(Parse("null"), kInvalid, {"the header is null"});
  ExpectError(Parse("7"), kInvalid, {"the header is a number"});
  ExpectError(Parse(std::string(1 << 20, '[')), kInvalid, {"the header is a list"});
  ExpectError(Parse("{\"__metadata__\":" + std::string(1 << 20, '[')), kInvalid, {"not JSON"});
}

TEST(SafetensorsTest, AnEntryOfAnotherFormIsAnErrorThatNamesIt) {
  const struct {
    const char* entry;
    const char* what;
  } kCases[] = {
      {R"(null)", "not an object"},
      {R"([])", "not an object"},
      {R"("F32")", "not an object"},
      {R"({})", "dtype is missing"},
      {R"({"dtype":"F32","shape":[1]})", "data_offsets is missing"},
      {R"({"dtype":"F32","data_offsets":[0,4]})", "shape is missing"},
      {R"({"shape":[1],"data_offsets":[0,4]})", "dtype is missing"},
      {R"({"dtype":1,"shape":[1],"data_offsets":[0,4]})", "dtype is or holds a number"},
      {R"({"dtype":["F32"],"shape":[1],"data_offsets":[0,4]})", "dtype is or holds a list"},
      {R"({"dtype":"F32","shape":1,"data_offsets":[0,4]})", "shape is or holds a number"},
      {R"({"dtype":"F32","shape":"1","data_offsets":[0,4]})", "shape is or holds a string"},
      {R"({"dtype":"F32","shape":null,"data_offsets":[0,4]})", "shape is or holds null"},
      {R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", "shape is or holds a fraction"},
      {R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", "shape holds a number outside"},
      {R"({"dtype":"F32","shape":[[1]],"data_offsets":[0,4]})", "shape is or holds a list"},
      {R"({"dtype":"F32","shape":[{}],"data_offsets":[0,4]})", "shape is or holds an object"},
      {R"({"dtype":"F32","shape":[true],"data_offsets":[0,4]})", "shape is or holds a boolean"},
      {R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]})",
       "outside [0, 2^63)"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", "data_offsets has 1 numbers"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[]})", "data_offsets has 0 numbers"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,2,4]})", "data_offsets has 3 numbers"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":{"begin":0}})", "is or holds an object"},
      {R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"extra":1})", "unknown field extra"},
      {R"({"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})", "dtype twice"},
      {R"({"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]})", "shape twice"},
  };
  for (const auto& c : kCases) {
    ExpectError(Parse(std::string("{\"some.weight\":") + c.entry + "}"), kInvalid,
                {"tensor some.weight", c.what});
  }
}

TEST(SafetensorsTest, ANameTwiceIsAnError) {
  const std::string x = Entry("x", "U8", "[4]", "[0,4]");
  ExpectError(Parse("{" + x + "," + Entry("x", "U8", "[4]", "[4,8]") + "}"), kInvalid,
              {"tensor x", "twice"});
  ExpectError(Parse("{" + x + "," + x + "}"), kInvalid, {"tensor x", "twice"});
  // The same name, once spelled with an escape.
  ExpectError(Parse("{" + x + "," + Entry("\\u0078", "U8", "[4]", "[4,8]") + "}"), kInvalid,
              {"tensor x", "twice"});
  ExpectError(Parse("{\"__metadata__\":{},\"__metadata__\":{}}"), kInvalid, {"twice"});
}

TEST(SafetensorsTest, OffsetsMustLieInTheFileAndFitTheShape) {
  const auto one = [](const char* dtype, const char* shape, const char* offsets) {
    return Parse("{" + Entry("x", dtype, shape, offsets) + "}", 64);
  };
  EXPECT_TRUE(one("F32", "[16]", "[0,64]").ok());
  ExpectError(one("F32", "[16]", "[4,68]"), kInvalid, {"tensor x", "byte 68", "64 bytes of data"});
  ExpectError(one("F32", "[1]", "[8,4]"), kInvalid, {"[8, 4] run backwards"});
  ExpectError(one("F32", "[2]", "[0,4]"), kInvalid, {"F32 [2] takes 8 bytes", "span 4"});
  ExpectError(one("F32", "[1]", "[0,8]"), kInvalid, {"takes 4 bytes", "span 8"});
  ExpectError(one("F32", "[]", "[0,0]"), kInvalid, {"takes 4 bytes", "span 0"});
  ExpectError(one("F32", "[0]", "[0,4]"), kInvalid, {"takes 0 bytes", "span 4"});
  ExpectError(one("U8", "[1]", "[9223372036854775806,9223372036854775807]"), kInvalid,
              {"cut short"});
}

TEST(SafetensorsTest, SizesThatOverflowAreAnError) {
  const auto one = [](const char* shape, const char* offsets) {
    return Parse("{" + Entry("x", "F32", shape, offsets) + "}", 64);
  };
  ExpectError(one("[9223372036854775807]", "[0,4]"), kInvalid, {"overflows"});
  ExpectError(one("[4294967296,4294967296]", "[0,0]"), kInvalid, {"overflows"});
  ExpectError(one("[4611686018427387904,4]", "[0,0]"), kInvalid, {"overflows"});
  ExpectError(one("[0,4294967296,4294967296]", "[0,0]"), kInvalid, {"overflows"});
  ExpectError(one("[4294967296,4294967296,0]", "[0,0]"), kInvalid, {"overflows"});
  EXPECT_TRUE(one("[0,4294967296]", "[0,0]").ok());
}

TEST(SafetensorsTest, SharedBytesAreAnError) {
  const std::string a = Entry("a", "U8", "[8]", "[0,8]");
  EXPECT_TRUE(Parse("{" + a + "," + Entry("b", "U8", "[8]", "[8,16]") + "}").ok());
  EXPECT_TRUE(Parse("{" + a + "," + Entry("b", "U8", "[0]", "[4,4]") + "}").ok());
  ExpectError(Parse("{" + a + "," + Entry("b", "U8", "[8]", "[7,15]") + "}"), kInvalid,
              {"tensors a and b share bytes"});
  ExpectError(Parse("{" + Entry("b", "U8", "[2]", "[3,5]") + "," + a + "}"), kInvalid,
              {"tensors a and b share bytes"});
  ExpectError(Parse("{" + a + "," + Entry("b", "U8", "[8]", "[0,8]") + "}"), kInvalid,
              {"share bytes"});
}

TEST(SafetensorsTest, UnknownDTypesAreAnErrorAndUnusedOnesAreNot) {
  ExpectError(Parse("{" + Entry("x", "F31", "[1]", "[0,4]") + "}"), kInvalid,
              {"tensor x", "unknown dtype F31"});
  ExpectError(Parse("{" + Entry("x", "bf16", "[1]", "[0,2]") + "}"), kInvalid, {"bf16"});
  for (const char* dtype : {"I8", "BOOL", "F8_E5M2", "F8_E8M0"}) {
    EXPECT_TRUE(Parse("{" + Entry("x", dtype, "[4]", "[0,4]") + "}").ok()) << dtype;
    EXPECT_FALSE(ToDType(dtype).has_value());
  }
  EXPECT_TRUE(Parse("{" + Entry("x", "U16", "[2]", "[0,4]") + "}").ok());
  EXPECT_TRUE(Parse("{" + Entry("x", "F64", "[2]", "[0,16]") + "}").ok());
  EXPECT_TRUE(Parse("{" + Entry("x", "F4", "[3,4]", "[0,6]") + "}").ok());
  ExpectError(Parse("{" + Entry("x", "F4", "[3]", "[0,1]") + "}"), kInvalid, {"span 1"});
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3, DType::kI32,
                      DType::kI64, DType::kU8}) {
    EXPECT_EQ(ToDType(SafetensorsName(dtype)), dtype);
  }
}

TEST(SafetensorsTest, NamesInErrorsAreEscapedAndCut) {
  const std::string odd = "a\\n\\u0000\\u00e9" + std::string(1000, 'z');
  const auto result = Parse("{\"" + odd + "\":1}");
  ExpectError(result, kInvalid, {"tensor a\\n\\x00\\xc3\\xa9zzz", "..."});
  EXPECT_LT(result.status().message().size(), 400u);
}

// A mutation of a valid file is read or refused; what is read lies inside the file.
TEST(SafetensorsTest, RandomDamageNeverCrashesOrLeavesTheFile) {
  const uint64_t seed = 7;
  SCOPED_TRACE(seed);
  Random random(seed);
  CheckpointWriter writer;
  writer.AddF32("model.norm.weight", {4}, {1, 2, 3, 4});
  writer.AddBf16("lm_head.weight", {2, 3}, {1, 2, 3, 4, 5, 6});
  writer.Add("q", {"F8_E4M3", {2, 2}, "abcd"});
  writer.Add("b", {"BOOL", {3}, "abc"});
  const std::string good = writer.FileBytes(writer.Names(), R"({"format":"pt"})", 1);
  const size_t header_end = good.find(std::string(1, '\0'), 8);
  const int64_t span = static_cast<int64_t>(std::min(header_end, good.size()));
  const std::string alphabet = "{}[]\",:0123456789-+.eEnulltrfas\\ ";
  int num_read = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string file = good;
    for (int64_t n = 1 + random.Below(4); n > 0 && !file.empty(); --n) {
      const size_t at = static_cast<size_t>(random.Below(span)) % file.size();
      const char symbol =
          alphabet[static_cast<size_t>(random.Below(static_cast<int64_t>(alphabet.size())))];
      const int64_t kind = random.Below(6);
      if (kind == 0) file[at] = static_cast<char>(random.Below(256));
      if (kind <= 2) file[at] = symbol;
      if (kind == 3) file.insert(at, 1, symbol);
      if (kind == 4) file.erase(at, static_cast<size_t>(1 + random.Below(5)));
      if (kind == 5) file.resize(std::max<size_t>(at, 1));
    }
    const auto tensors = ParseSafetensors(file);
    if (!tensors.ok()) {
      EXPECT_EQ(tensors.status().code(), kInvalid);
      continue;
    }
    ++num_read;
    for (const StoredTensor& t : *tensors) {
      EXPECT_GE(t.begin, 8);
      EXPECT_LE(t.begin, t.end);
      EXPECT_LE(t.end, static_cast<int64_t>(file.size()));
    }
  }
  EXPECT_GT(num_read, 50);
}

}  // namespace
}  // namespace jevons
