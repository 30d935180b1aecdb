#include "parallel/mesh_slot.h"

#include <gloo/transport/context.h>
#include <gloo/transport/unbound_buffer.h>

#include <cstring>
#include <exception>
#include <string_view>

#include "base/strings.h"

namespace jevons {
namespace {

constexpr uint64_t kMessageSlot = 1;  // payload and notes have others

size_t MarkOffset(const MeshMessage& message) {
  return sizeof(MeshMessage) + message.num_inline_bytes;
}

// Not a number that data has there by chance.
uint64_t Mark(const MeshMessage& message) {
  return ~static_cast<uint64_t>(message.call_number) * 0x9E3779B97F4A7C15;
}

// Gloo puts the line of its source in front: "[./gloo/transport/tcp/pair.cc:589] Connection closed".
std::string_view WithoutPlace(std::string_view text) {
  const size_t end = text.find("] ");
  return text.starts_with('[') && end != text.npos ? text.substr(end + 2) : text;
}

}  // namespace

absl::Status GuardGloo(absl::FunctionRef<void()> fn) {
  try {
    fn();
  } catch (const std::exception& error) {
    return absl::AbortedError(ToAbsl(WithoutPlace(error.what())));
  } catch (...) {
    return absl::AbortedError("unknown exception");
  }
  return absl::OkStatus();
}

MeshSlot::MeshSlot()
    : bytes_(sizeof(MeshMessage) + MeshMessage::kMaxInlineBytes + sizeof(uint64_t), 0) {}
MeshSlot::~MeshSlot() = default;

void MeshSlot::Create(gloo::transport::Context& context) {
  buffer_ = context.createUnboundBuffer(bytes_.data(), bytes_.size());
}

void MeshSlot::Write(const MeshMessage& message, const void* data) {
  std::memcpy(bytes_.data(), &message, sizeof(message));
  if (message.num_inline_bytes > 0) {
    std::memcpy(bytes_.data() + sizeof(message), data, message.num_inline_bytes);
  }
  const uint64_t mark = Mark(message);
  std::memcpy(bytes_.data() + MarkOffset(message), &mark, sizeof(mark));
}

void MeshSlot::Send(int32_t to) {
  GuardGloo([&] {
    buffer_->send(to, kMessageSlot, 0, MarkOffset(message()) + sizeof(uint64_t));
  }).IgnoreError();
}

void MeshSlot::Post(int32_t from) {
  const MeshMessage nothing;
  std::memcpy(bytes_.data(), &nothing, sizeof(nothing));
  error_ = GuardGloo([&] { buffer_->recv(from, kMessageSlot, 0, bytes_.size()); });
}

bool MeshSlot::Arrived() const {
  const MeshMessage seen = message();
  if (seen.call_number == 0 || seen.num_inline_bytes < 0 ||
      seen.num_inline_bytes > MeshMessage::kMaxInlineBytes) {
    return false;
  }
  uint64_t mark = 0;
  std::memcpy(&mark, bytes_.data() + MarkOffset(seen), sizeof(mark));
  return mark == Mark(seen);
}

MeshMessage MeshSlot::message() const {
  MeshMessage message;
  std::memcpy(&message, bytes_.data(), sizeof(message));
  return message;
}

}  // namespace jevons
