// Messages between ranks over Gloo, in buffers that are used again.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/status.h"
#include "parallel/call_check.h"

namespace gloo::transport {
class Context;
class UnboundBuffer;
}  // namespace gloo::transport

namespace jevons {

// Runs `fn`, which calls Gloo. Gloo throws: ABORTED with its text.
absl::Status GuardGloo(absl::FunctionRef<void()> fn);

// What ranks send each other for every call, with data if it is small.
struct MeshMessage {
  enum class Type : int32_t { kCall, kSent, kReceived };
  static constexpr int64_t kMaxInlineBytes = 32 << 10;

  int64_t call_number = 0;
  Type type = Type::kCall;
  int32_t num_inline_bytes = 0;
  CallHeader header = {};
};

// Room for a message on its way. Thread-compatible.
class MeshSlot {
 public:
  MeshSlot();
  ~MeshSlot();

  // Before all others.
  void Create(gloo::transport::Context& context);
  gloo::transport::UnboundBuffer* buffer() const { return buffer_.get(); }

  void Write(const MeshMessage& message, const void* data);
  // What was written. An error shows when something is received from the rank.
  void Send(int32_t to);

  // Makes room for the next message of the rank.
  void Post(int32_t from);
  // Of the last Post.
  const absl::Status& error() const { return error_; }
  // All of the message is there. May be called while it arrives.
  bool Arrived() const;
  MeshMessage message() const;
  const void* data() const { return bytes_.data() + sizeof(MeshMessage); }

 private:
  // The message, its data, and a mark that says that all of it is there.
  std::vector<uint8_t> bytes_;
  std::unique_ptr<gloo::transport::UnboundBuffer> buffer_;
  absl::Status error_;
};

}  // namespace jevons
