// Bytes of the wire to messages and back, and statuses of both worlds.
#pragma once

#include <string>

#include "base/status.h"
#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"

namespace jevons {

// Fills `message`. INVALID_ARGUMENT for bytes that are no such message; for ill-formed UTF-8 in a
// string field the text has the field's path and the offset of the first wrong byte.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message& message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

// The same code; the text is bounded, since trailers have a limit.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace jevons
