#include "server/library_logs.h"

#include "base/log.h"
#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"

namespace jevons {
namespace {

void LogGrpc(gpr_log_func_args* args) {
  if (args->severity < GPR_LOG_SEVERITY_ERROR) return;
  LogWarning("grpc", {{"message", args->message}});
}

}  // namespace

void RouteLibraryLogs() {
  gpr_set_log_function(&LogGrpc);
  google::protobuf::SetLogHandler(nullptr);
}

}  // namespace jevons
