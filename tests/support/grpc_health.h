// What gRPC's health service says of a server.
#pragma once

#include <string>

#include "tests/support/http2_client.h"

namespace jevons {

// 1 serving, 2 not serving; -1 for no answer. `name` has at most 127 bytes.
inline int GrpcHealthOf(const std::string& address, const std::string& name) {
  constexpr size_t kFrameBytes = 5;
  std::string request;
  if (!name.empty()) request = "\x0a" + std::string(1, static_cast<char>(name.size())) + name;
  const Http2Answer answer =
      CallHttp2(address, {.path = "/grpc.health.v1.Health/Check", .message = request});
  if (answer.status() != 0 || answer.data.size() != kFrameBytes + 2) return -1;
  return answer.data[kFrameBytes + 1];
}

}  // namespace jevons
