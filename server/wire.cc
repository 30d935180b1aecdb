#include "server/wire.h"

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/unknown_field_set.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "grpcpp/support/slice.h"
#include "model/tokenizer.h"
#include "server/error_text.h"

namespace jevons {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// What is wrong with the fields of a message of type `type` whose path is `path` ("" or "chat.");
// empty if nothing is.
std::string FindFault(const UnknownFieldSet& fields, const Descriptor& type,
                      const std::string& path) {
  std::vector<int> seen(static_cast<size_t>(type.field_count()), 0);
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    std::string name = path + known->name();
    if (known->is_repeated()) absl::StrAppend(&name, "[", seen[known->index()]++, "]");
    const std::string& bytes = field.length_delimited();
    if (known->type() == FieldDescriptor::TYPE_STRING) {
      const auto offset = FindInvalidUtf8(bytes);
      if (offset) return absl::StrCat(name, ": ill-formed UTF-8 at byte ", *offset);
    }
    if (known->type() != FieldDescriptor::TYPE_MESSAGE) continue;
    UnknownFieldSet inner;
    if (!inner.ParseFromString(bytes)) return absl::StrCat(name, ": ill-formed protobuf message");
    const std::string fault = FindFault(inner, *known->message_type(), name + ".");
    if (!fault.empty()) return fault;
  }
  return "";
}

}  // namespace

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message& message) {
  grpc::ByteBuffer copy(bytes);  // counts references; the reader wants one it may change
  {
    grpc::ProtoBufferReader reader(&copy);
    if (reader.status().ok() && message.ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  }
  const std::string& name = message.GetDescriptor()->name();
  UnknownFieldSet fields;
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok() || !fields.ParseFromZeroCopyStream(&reader)) {
    return absl::InvalidArgumentError(absl::StrCat("the request is no protobuf message (", name,
                                                   " was expected), given ", bytes.Length(),
                                                   " bytes"));
  }
  const std::string fault = FindFault(fields, *message.GetDescriptor(), "");
  if (!fault.empty()) return absl::InvalidArgumentError(fault);
  return absl::InvalidArgumentError(
      absl::StrCat("the request is no ", name, " message, given ", bytes.Length(), " bytes"));
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::string_view text = status.message();
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      BoundText(std::string_view(text.data(), text.size())));
}

}  // namespace jevons
