#include "server/grpc_service.h"

#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "jevons/v1/inference.grpc.pb.h"
#include "server/call_registry.h"
#include "server/generate_reactor.h"
#include "server/request_mapping.h"
#include "server/wire.h"
#include "server/work_thread.h"

namespace jevons {
namespace {

// A request of more bytes than this is prepared on the work thread: gRPC has few threads, and
// tokenising takes about a second for ten million bytes.
constexpr size_t kInlineBytes = 64 << 10;
constexpr size_t kMaxWaitingLarge = 64;
// One message of a unary call; clients have gRPC's limit of 4 MiB.
constexpr size_t kMaxUnaryBytes = 4'000'000;

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

// A unary call. Holds itself until gRPC says OnDone.
class UnaryReactor : public grpc::ServerUnaryReactor {
 public:
  static std::shared_ptr<UnaryReactor> Create() {
    auto out = std::make_shared<UnaryReactor>();
    out->self_ = out;
    return out;
  }
  void OnDone() override { const std::shared_ptr<UnaryReactor> self = std::move(self_); }

 private:
  std::shared_ptr<UnaryReactor> self_;
};

template <typename Service>
using Raw = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_ListModels<v1::Inference::WithRawCallbackMethod_Tokenize<
        v1::Inference::WithRawCallbackMethod_Detokenize<
            v1::Inference::WithRawCallbackMethod_GetStatus<Service>>>>>;

// Raw: a message with ill-formed UTF-8 would otherwise be refused by gRPC with INTERNAL and no
// text.
class GrpcServiceImpl : public GrpcService, private Raw<v1::Inference::Service> {
 public:
  GrpcServiceImpl(Engine* engine, const HealthMonitor* health)
      : engine_(engine), health_(health), prompts_(engine), work_(kMaxWaitingLarge) {}

  grpc::Service* service() override { return this; }
  void AbortAll(const absl::Status& status) override { registry_.AbortAll(status); }
  bool WaitIdle(absl::Duration timeout) override { return registry_.WaitOpen(timeout); }

 private:
  using Bytes = grpc::ByteBuffer;

  grpc::ServerWriteReactor<Bytes>* Generate(grpc::CallbackServerContext* context,
                                            const Bytes* request) override {
    const auto reactor = GenerateReactor::Create(
        {.engine = engine_, .prompts = &prompts_, .pump = &pump_, .registry = &registry_},
        DeadlineOf(*context));
    const absl::Status posted =
        Run(*request, [reactor, bytes = *request] { reactor->Submit(bytes); });
    if (!posted.ok()) reactor->Abort(posted);
    return reactor.get();
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext*, const Bytes* request,
                                       Bytes* response) override {
    return Unary<v1::ListModelsRequest, v1::ListModelsResponse>(*request, response,
                                                                &GrpcServiceImpl::DoListModels);
  }
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext*, const Bytes* request,
                                      Bytes* response) override {
    return Unary<v1::GetStatusRequest, v1::GetStatusResponse>(*request, response,
                                                              &GrpcServiceImpl::DoGetStatus);
  }
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext*, const Bytes* request,
                                     Bytes* response) override {
    return Unary<v1::TokenizeRequest, v1::TokenizeResponse>(*request, response,
                                                            &GrpcServiceImpl::DoTokenize);
  }
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext*, const Bytes* request,
                                       Bytes* response) override {
    return Unary<v1::DetokenizeRequest, v1::DetokenizeResponse>(*request, response,
                                                                &GrpcServiceImpl::DoDetokenize);
  }

  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Unary(const Bytes& bytes, Bytes* response_bytes,
                                  absl::Status (GrpcServiceImpl::*method)(const Request&, Response&)
                                      const) {
    const auto reactor = UnaryReactor::Create();
    const absl::Status posted = Run(bytes, [this, reactor, bytes, response_bytes, method] {
      Response response;
      const absl::Status status = RunMethod(bytes, method, response);
      if (status.ok()) *response_bytes = SerializeMessage(response);
      reactor->Finish(ToGrpcStatus(status));
    });
    if (!posted.ok()) reactor->Finish(ToGrpcStatus(posted));
    return reactor.get();
  }

  template <typename Request, typename Response>
  absl::Status RunMethod(const Bytes& bytes,
                         absl::Status (GrpcServiceImpl::*method)(const Request&, Response&) const,
                         Response& response) const {
    Request request;
    RETURN_IF_ERROR(ParseMessage(bytes, request));
    RETURN_IF_ERROR((this->*method)(request, response));
    const size_t num_bytes = response.ByteSizeLong();
    if (num_bytes <= kMaxUnaryBytes) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("the answer may have at most ", kMaxUnaryBytes,
                                                     " bytes, but has ", num_bytes,
                                                     "; split the request"));
  }

  absl::Status DoListModels(const v1::ListModelsRequest&, v1::ListModelsResponse& response) const {
    const GenerationLimits& limits = engine_->limits();
    const SamplingParams sampling = prompts_.DefaultSampling();
    v1::Model& model = *response.add_models();
    model.set_name(engine_->options().model_name);
    model.set_model_type(engine_->config().model_type);
    model.set_max_model_len(limits.max_model_len);
    model.set_vocab_size(limits.vocab_size);
    model.set_num_tokens(limits.num_tokens);
    model.set_kv_cache_tokens(limits.kv_cache_tokens);
    model.set_max_num_seqs(engine_->options().max_num_seqs);
    model.set_has_chat_template(engine_->chat_format().has_template());
    model.set_default_temperature(sampling.temperature);
    model.set_default_top_p(sampling.top_p);
    model.set_default_top_k(sampling.top_k);
    model.set_backend(engine_->backend_description());
    return absl::OkStatus();
  }

  absl::Status DoGetStatus(const v1::GetStatusRequest&, v1::GetStatusResponse& response) const {
    response = MapHealth(health_->Look());
    return absl::OkStatus();
  }

  absl::Status DoTokenize(const v1::TokenizeRequest& request,
                          v1::TokenizeResponse& response) const {
    RETURN_IF_ERROR(CheckModel(request.model(), engine_->options().model_name));
    std::vector<int32_t> ids;
    switch (request.input_case()) {
      case v1::TokenizeRequest::kText: {
        using Bos = PromptBuilder::Bos;
        ASSIGN_OR_RETURN(ids, prompts_.FromText(request.text(),
                                                request.add_bos() ? Bos::kAsTrained : Bos::kNone));
        break;
      }
      case v1::TokenizeRequest::kChat: {
        ASSIGN_OR_RETURN(const nlohmann::ordered_json conversation, MapChat(request.chat()));
        ASSIGN_OR_RETURN(PromptBuilder::Rendered rendered,
                         prompts_.FromConversation(
                             conversation, {.trust_content = request.chat().trust_content()}));
        ids = std::move(rendered.ids);
        response.set_rendered(std::move(rendered.text));
        break;
      }
      case v1::TokenizeRequest::INPUT_NOT_SET:
        return absl::InvalidArgumentError("input is missing: set one of text, chat");
    }
    response.mutable_token_ids()->Assign(ids.begin(), ids.end());
    return absl::OkStatus();
  }

  absl::Status DoDetokenize(const v1::DetokenizeRequest& request,
                            v1::DetokenizeResponse& response) const {
    RETURN_IF_ERROR(CheckModel(request.model(), engine_->options().model_name));
    const std::span<const int32_t> ids(request.token_ids().data(),
                                       static_cast<size_t>(request.token_ids_size()));
    RETURN_IF_ERROR(prompts_.CheckIds("token_ids", ids));
    response.set_text(engine_->tokenizer().Decode(ids, request.skip_special()));
    return absl::OkStatus();
  }

  // Runs `job` here if the request is small, else on the work thread.
  absl::Status Run(const Bytes& request, std::function<void()> job) {
    if (request.Length() > kInlineBytes) return work_.Post(std::move(job));
    job();
    return absl::OkStatus();
  }

  Engine* const engine_;
  const HealthMonitor* const health_;
  const PromptBuilder prompts_;
  CallRegistry registry_;
  StreamPump pump_;
  WorkThread work_;  // last: its jobs use what stands above
};

}  // namespace

std::unique_ptr<GrpcService> GrpcService::Create(Engine* engine, const HealthMonitor* health) {
  return std::make_unique<GrpcServiceImpl>(engine, health);
}

}  // namespace jevons
