#include "server/wire.h"

#include "gtest/gtest.h"
#include "jevons/v1/inference.pb.h"
#include "server/error_text.h"
#include "server/library_logs.h"

namespace jevons {
namespace {

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  // Two slices, since a message need not arrive in one piece.
  const size_t half = bytes.size() / 2;
  const grpc::Slice slices[] = {grpc::Slice(bytes.substr(0, half)),
                                grpc::Slice(bytes.substr(half))};
  return grpc::ByteBuffer(slices, 2);
}

// `request` on the wire with each '#' replaced by a byte that is never part of UTF-8.
std::string WithBadBytes(const v1::GenerateRequest& request) {
  std::string bytes = request.SerializeAsString();
  for (char& c : bytes) {
    if (c == '#') c = '\xff';
  }
  return bytes;
}

absl::Status Parse(const std::string& bytes) {
  v1::GenerateRequest request;
  return ParseMessage(ToBuffer(bytes), request);
}

TEST(WireTest, AMessageComesBackEqual) {
  v1::GenerateRequest request;
  request.set_text(std::string("a\0\u00e9", 4));
  request.set_max_tokens(0);
  v1::GenerateRequest back;
  ASSERT_TRUE(ParseMessage(SerializeMessage(request), back).ok());
  EXPECT_EQ(back.SerializeAsString(), request.SerializeAsString());
  EXPECT_TRUE(back.has_max_tokens());
}

TEST(WireTest, IllFormedUtf8IsNamedWithPathAndOffset) {
  RouteLibraryLogs();
  v1::GenerateRequest request;
  request.set_text("abc#");
  EXPECT_EQ(Parse(WithBadBytes(request)),
            absl::InvalidArgumentError("text: ill-formed UTF-8 at byte 3"));
  request.Clear();
  request.add_stop("ok");
  request.add_stop("#");
  EXPECT_EQ(Parse(WithBadBytes(request)),
            absl::InvalidArgumentError("stop[1]: ill-formed UTF-8 at byte 0"));
  request.Clear();
  request.mutable_chat()->add_messages()->set_content("fine");
  request.mutable_chat()->add_messages()->add_tool_calls()->set_arguments("{\"#\"}");
  EXPECT_EQ(Parse(WithBadBytes(request)),
            absl::InvalidArgumentError(
                "chat.messages[1].tool_calls[0].arguments: ill-formed UTF-8 at byte 2"));
}

TEST(WireTest, BytesThatAreNoMessageAreRefused) {
  EXPECT_EQ(Parse("\xff\xff\xff"),
            absl::InvalidArgumentError("the request is no protobuf message (GenerateRequest was "
                                       "expected), given 3 bytes"));
  // Field 2 claims 100 bytes and has one.
  EXPECT_EQ(Parse("\x12\x64x").code(), absl::StatusCode::kInvalidArgument);
  // Field 4, a message, holds no message.
  EXPECT_EQ(Parse("\x22\x01\xff"), absl::InvalidArgumentError("chat: ill-formed protobuf message"));
}

TEST(WireTest, UnknownFieldsAreIgnored) {
  EXPECT_TRUE(Parse("\xfa\x7f\x01\xff").ok());  // field 2047, one byte that is not UTF-8
}

TEST(WireTest, StatusKeepsItsCodeAndIsBounded) {
  const grpc::Status status = ToGrpcStatus(absl::NotFoundError(std::string(100'000, 'x')));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message().size(), kMaxErrorBytes);
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
}

}  // namespace
}  // namespace jevons
