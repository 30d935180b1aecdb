// A blocking client of one Jevons server.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "base/mutex.h"
#include "base/status.h"
#include "jevons/v1/inference.pb.h"

namespace grpc {
class ClientContext;
}  // namespace grpc

namespace jevons {

// A handle to cancel a Generate call from another thread. Thread-safe; it may outlive the call and
// may be cancelled before it begins. For one call at a time; once cancelled, it cancels every later
// call too.
class CallHandle {
 public:
  void Cancel();

 private:
  friend class ClientImpl;
  void Attach(grpc::ClientContext* context);
  void Detach();

  Mutex mutex_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

struct CallOptions {
  absl::Time deadline = absl::InfiniteFuture();
  CallHandle* handle = nullptr;  // not owned, may be null
};

// Thread-safe: any number of calls at the same time. A call that ends with UNAVAILABLE before anything
// came back is made up to three times more within about 1.3 seconds.
class Client {
 public:
  virtual ~Client() = default;

  // Does not wait for the server: the first call does.
  static std::unique_ptr<Client> Connect(const std::string& address);

  // UNAVAILABLE, with the address, if there is no connection within `timeout`.
  virtual absl::Status WaitConnected(absl::Duration timeout) = 0;

  // Calls `on_message` on this thread for each message in order. Returns the status that the server
  // ended with; DATA_LOSS where it was OK and no terminal message came.
  virtual absl::Status Generate(const v1::GenerateRequest& request,
                                const std::function<void(const v1::GenerateResponse&)>& on_message,
                                const CallOptions& options = {}) = 0;

  virtual absl::StatusOr<v1::ListModelsResponse> ListModels() = 0;
  virtual absl::StatusOr<v1::GetStatusResponse> GetStatus() = 0;
  virtual absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) = 0;
  virtual absl::StatusOr<v1::DetokenizeResponse> Detokenize(
      const v1::DetokenizeRequest& request) = 0;
};

}  // namespace jevons
