#include "server/library_logs.h"

#include <string_view>

#include "base/log.h"
#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"

namespace jevons {
namespace {

void LogGrpc(gpr_log_func_args* args) {
  if (args->severity < GPR_LOG_SEVERITY_ERROR) return;
  // Of a port that was closed below it (server/close_connections.h).
  if (std::string_view(args->message) == "Failed accept4: Invalid argument") return;
  LogWarning("grpc", {{"message", args->message}});
}

}  // namespace

void RouteLibraryLogs() {
  gpr_set_log_function(&LogGrpc);
  google::protobuf::SetLogHandler(nullptr);
}

}  // namespace jevons
