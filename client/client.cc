#include "client/client.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "jevons/v1/inference.grpc.pb.h"

namespace jevons {
namespace {

constexpr absl::Duration kUnaryTimeout = absl::Seconds(60);
constexpr int kPingMs = 20'000;  // the server allows one every 10 s
constexpr int kPingTimeoutMs = 20'000;
constexpr int kReconnectMs = 100;  // after a first failure
// A call that ended with UNAVAILABLE before anything came back begins again, after 0.1, 0.3 and 0.9
// seconds: a single connection may fail though the server is there (gRPC 1.51 looks at connect()'s
// errno when other calls were made in between; grpc/grpc 35064).
constexpr const char* kServiceConfig = R"({"methodConfig": [{"name": [{}], "retryPolicy": {
  "maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 3,
  "retryableStatusCodes": ["UNAVAILABLE"]}}]})";

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

void SetDeadline(absl::Time deadline, grpc::ClientContext& context) {
  if (deadline == absl::InfiniteFuture()) return;
  context.set_deadline(absl::ToChronoTime(deadline));
}

}  // namespace

void CallHandle::Cancel() {
  MutexLock lock(&mutex_);
  cancelled_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

void CallHandle::Attach(grpc::ClientContext* context) {
  MutexLock lock(&mutex_);
  context_ = context;
  if (cancelled_) context->TryCancel();
}

void CallHandle::Detach() {
  MutexLock lock(&mutex_);
  context_ = nullptr;
}

class ClientImpl : public Client {
 public:
  explicit ClientImpl(const std::string& address) : address_(address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPingMs);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingTimeoutMs);
    // A connection of its own: clients of one process share neither it nor its state.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMs);
    arguments.SetServiceConfigJSON(kServiceConfig);
    channel_ = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Inference::NewStub(channel_);
  }

  absl::Status WaitConnected(absl::Duration timeout) override {
    const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout);
    if (channel_->WaitForConnected(deadline)) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("no server answers at ", address_));
  }

  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<void(const v1::GenerateResponse&)>& on_message,
                        const CallOptions& options) override {
    grpc::ClientContext context;
    SetDeadline(options.deadline, context);
    if (options.handle != nullptr) options.handle->Attach(&context);
    const auto reader = stub_->Generate(&context, request);
    bool ended = false;
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      ended = ended || message.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
      if (on_message) on_message(message);
    }
    const grpc::Status status = reader->Finish();
    if (options.handle != nullptr) options.handle->Detach();
    if (status.ok() && !ended) {
      return absl::DataLossError("the stream was cut: it ended without a terminal message");
    }
    return FromGrpc(status);
  }

  absl::StatusOr<v1::ListModelsResponse> ListModels() override {
    return Unary<v1::ListModelsResponse>(&v1::Inference::Stub::ListModels, v1::ListModelsRequest());
  }
  absl::StatusOr<v1::GetStatusResponse> GetStatus() override {
    return Unary<v1::GetStatusResponse>(&v1::Inference::Stub::GetStatus, v1::GetStatusRequest());
  }
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) override {
    return Unary<v1::TokenizeResponse>(&v1::Inference::Stub::Tokenize, request);
  }
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) override {
    return Unary<v1::DetokenizeResponse>(&v1::Inference::Stub::Detokenize, request);
  }

 private:
  template <typename Response, typename Request>
  absl::StatusOr<Response> Unary(grpc::Status (v1::Inference::Stub::*method)(grpc::ClientContext*,
                                                                             const Request&,
                                                                             Response*),
                                 const Request& request) {
    grpc::ClientContext context;
    SetDeadline(absl::Now() + kUnaryTimeout, context);
    Response response;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
    if (!status.ok()) return FromGrpc(status);
    return response;
  }

  const std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

std::unique_ptr<Client> Client::Connect(const std::string& address) {
  return std::make_unique<ClientImpl>(address);
}

}  // namespace jevons
