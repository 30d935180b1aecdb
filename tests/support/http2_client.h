// A raw HTTP/2 client for gRPC servers: does exactly what a test says and nothing on its own, such
// as giving up at a deadline.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/time/time.h"

namespace jevons {

struct Http2Call {
  std::string path;                                 // "/jevons.v1.Inference/Generate"
  std::string message;                              // serialized protobuf
  std::map<std::string, std::string> headers = {};  // more of them, e.g. {"grpc-timeout", "1S"}
};

struct Http2Answer {
  std::string data;                             // with gRPC's five-byte frames
  std::map<std::string, std::string> trailers;  // and headers
  bool closed = false;                          // the server ended the stream
  absl::Time start;
  absl::Time end;

  // The last grpc-status, or -1.
  int status() const;
};

// One connection with one call. Thread-compatible.
class Http2Client {
 public:
  virtual ~Http2Client() = default;  // closes the TCP connection without a word

  // `address` is HOST:PORT with a numeric IPv4 host. Null if nobody listens.
  static std::unique_ptr<Http2Client> Connect(const std::string& address);

  virtual void Send(const Http2Call& call) = 0;
  // Reads until `num_bytes` of data are there, the stream has ended, or `limit` has passed.
  virtual const Http2Answer& Read(size_t num_bytes, absl::Duration limit) = 0;
};

// Call, answer, close.
Http2Answer CallHttp2(const std::string& address, const Http2Call& call,
                      absl::Duration limit = absl::Seconds(60));

}  // namespace jevons
