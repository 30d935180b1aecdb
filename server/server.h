// A listening gRPC server: the inference service, health and reflection.
#pragma once

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "engine/engine.h"

namespace jevons {

struct ServerOptions {
  std::string listen = "127.0.0.1:50051";         // port 0: a free one
  int32_t max_message_mb = 16;                    // [1, 2047], largest request in MiB
  absl::Duration stall_time = absl::Seconds(30);  // see HealthMonitor
};

// Thread-safe.
class Server {
 public:
  virtual ~Server() = default;  // ends open calls with UNAVAILABLE

  // `engine` outlives it. INVALID_ARGUMENT for an ill-formed address, UNAVAILABLE with the reason
  // where it cannot listen there.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       Engine* engine);

  // Where it listens, with the port in use.
  virtual const std::string& address() const = 0;

  // Health says NOT_SERVING, new requests get UNAVAILABLE, the accepted ones may finish for at most
  // `patience`, the rest end with UNAVAILABLE; then the server and the engine are shut down.
  // Returns when all that is done.
  virtual void Drain(absl::Duration patience) = 0;
  // Ends a Drain's patience: open calls end with UNAVAILABLE now.
  virtual void AbortAll() = 0;
};

}  // namespace jevons
