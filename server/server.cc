#include "server/server.h"

#include <mutex>

#include "absl/strings/str_cat.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "server/close_connections.h"
#include "server/grpc_service.h"
#include "server/health_monitor.h"
#include "server/listen.h"

namespace jevons {
namespace {

constexpr int kMinPingIntervalMs = 9'000;  // "every 10 s", with room for jitter
constexpr int kServerPingMs = 30'000;  // with the next line: a dead peer is noticed within a minute
constexpr int kServerPingTimeoutMs = 20'000;
constexpr int kMaxConnectionIdleMs = 900'000;            // above the idle limits of common proxies
constexpr absl::Duration kFlushTime = absl::Seconds(5);  // for a client that reads slowly
constexpr absl::Duration kCloseTime = absl::Seconds(1);  // for what was written to arrive

class ServerImpl : public Server {
 public:
  ServerImpl(Engine* engine, absl::Duration stall_time)
      : engine_(engine),
        service_(GrpcService::Create(engine, &health_)),
        health_(engine, stall_time) {}

  ~ServerImpl() override {
    service_->AbortAll(absl::UnavailableError("the server is shutting down"));
    ShutdownServer();
  }

  absl::Status Listen(const ServerOptions& options) {
    ASSIGN_OR_RETURN(const HostPort parsed, ParseAddress("listen", options.listen));
    grpc::ServerBuilder builder;
    builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(service_->service());
    builder.SetMaxReceiveMessageSize(options.max_message_mb << 20);
    // Else a second server on the port would silently take half of the connections.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                               kMinPingIntervalMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kServerPingMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kServerPingTimeoutMs);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kMaxConnectionIdleMs);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(
          absl::StrCat("listen: cannot listen on ", options.listen, ": ", ListenFault(parsed)));
    }
    address_ = absl::StrCat(options.listen.substr(0, options.listen.rfind(':')), ":", port_);
    health_.Publish(server_->GetHealthCheckService());
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void Drain(absl::Duration patience) override {
    health_.SetDraining();
    engine_->Drain(patience);
    ShutdownServer();
  }

  void AbortAll() override {
    service_->AbortAll(absl::UnavailableError("the server was told to stop at once"));
  }

 private:
  // A client that does not read could hold its call for ever: in the end gRPC cancels it.
  void ShutdownServer() {
    std::call_once(shutdown_, [this] {
      if (server_ == nullptr) return;
      service_->WaitIdle(kFlushTime);
      CloseConnections(port_, kCloseTime);
      server_->Shutdown(std::chrono::system_clock::now());
      server_->Wait();
    });
  }

  Engine* const engine_;
  const std::unique_ptr<GrpcService> service_;
  std::unique_ptr<grpc::Server> server_;  // below `service_`: it goes first
  HealthMonitor health_;                  // below `server_`: it tells its health service
  std::string address_;
  int port_ = 0;
  std::once_flag shutdown_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      Engine* engine) {
  static std::once_flag plugins;
  std::call_once(plugins, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
  auto out = std::make_unique<ServerImpl>(engine, options.stall_time);
  RETURN_IF_ERROR(out->Listen(options));
  return out;
}

}  // namespace jevons
