// The gRPC service Inference.
#pragma once

#include <memory>

#include "engine/engine.h"
#include "server/health_monitor.h"
#include "grpcpp/impl/service_type.h"

namespace jevons {

// Thread-safe. Destroy it after the grpc::Server that it is registered with has shut down.
class GrpcService {
 public:
  virtual ~GrpcService() = default;

  // `engine` and `health` outlive it.
  static std::unique_ptr<GrpcService> Create(Engine* engine, const HealthMonitor* health);

  virtual grpc::Service* service() = 0;

  // Ends every open Generate call, and every later one, with `status`.
  virtual void AbortAll(const absl::Status& status) = 0;
  // Waits for the Generate calls that are open now. False if some still are after `timeout`.
  virtual bool WaitIdle(absl::Duration timeout) = 0;
};

}  // namespace jevons
