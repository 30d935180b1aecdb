#include "server/generate_reactor.h"

#include <random>
#include <utility>

#include "server/call_registry.h"
#include "server/request_mapping.h"
#include "server/wire.h"

namespace jevons {
namespace {

uint64_t DrawSeed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace

std::shared_ptr<GenerateReactor> GenerateReactor::Create(const Deps& deps, absl::Time deadline) {
  std::shared_ptr<GenerateReactor> out(new GenerateReactor(deps, deadline));
  out->self_ = out;
  out->number_ = deps.registry->Add(out);
  return out;
}

void GenerateReactor::Submit(const grpc::ByteBuffer& bytes) {
  absl::Status status = SubmitRequest(bytes);
  MutexLock lock(&mutex_);
  if (!status.ok()) end_ = std::move(status);
  PumpLocked();
}

absl::Status GenerateReactor::SubmitRequest(const grpc::ByteBuffer& bytes) {
  v1::GenerateRequest request;
  RETURN_IF_ERROR(ParseMessage(bytes, request));
  ASSIGN_OR_RETURN(
      GenerationRequest generation,
      MapGenerateRequest(request, *deps_.prompts, {.deadline = deadline_, .seed = DrawSeed()}));
  v1::GenerateResponse first;
  v1::Started& started = *first.mutable_started();
  started.set_model(deps_.engine->options().model_name);
  started.set_prompt_tokens(static_cast<int32_t>(generation.prompt_ids.size()));
  started.set_seed(generation.sampling.seed);
  MutexLock lock(&mutex_);
  if (finished_ || abort_) return absl::OkStatus();
  // Weak: the stream holds the callback, and this object the stream.
  ASSIGN_OR_RETURN(stream_, deps_.engine->Submit(std::move(generation),
                                                 deps_.pump->NoticeFor(weak_from_this())));
  token_ids_ = request.return_token_ids() ? TokenIdMode::kReturn : TokenIdMode::kOmit;
  pending_.push_back(std::move(first));
  return absl::OkStatus();
}

void GenerateReactor::Abort(absl::Status status) {
  MutexLock lock(&mutex_);
  if (stream_ != nullptr) stream_->Cancel();
  if (!abort_) abort_ = std::move(status);
  PumpLocked();
}

void GenerateReactor::Pump() {
  MutexLock lock(&mutex_);
  PumpLocked();
}

void GenerateReactor::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  on_the_way_.Clear();
  if (!ok) {
    if (stream_ != nullptr) stream_->Cancel();
    if (!abort_) abort_ = absl::CancelledError("the client is gone");
  }
  PumpLocked();
}

void GenerateReactor::OnCancel() {
  // gRPC's own timer may come first; the reason is the deadline all the same.
  Abort(deadline_ <= absl::Now() ? absl::DeadlineExceededError("the deadline has passed")
                                 : absl::CancelledError("the client cancelled the call"));
}

void GenerateReactor::OnDone() {
  const std::shared_ptr<GenerateReactor> self = std::move(self_);
  deps_.registry->Remove(number_);
}

void GenerateReactor::PumpLocked() {
  if (writing_ || finished_) return;
  if (abort_) return FinishLocked(*abort_);
  while (pending_.empty() && !end_ && stream_ != nullptr) {
    if (!TakeLocked()) break;
  }
  if (!pending_.empty()) return WriteLocked();
  if (end_) FinishLocked(*end_);
}

bool GenerateReactor::TakeLocked() {
  std::optional<StreamChunk> chunk = stream_->TakeChunk();
  if (!chunk) return false;
  if (chunk->end) end_ = EndStatus(*chunk->end);
  for (v1::GenerateResponse& message : MapChunk(*std::move(chunk), token_ids_)) {
    pending_.push_back(std::move(message));
  }
  return true;
}

void GenerateReactor::WriteLocked() {
  on_the_way_ = SerializeMessage(pending_.front());
  pending_.pop_front();
  writing_ = true;
  const bool last = pending_.empty() && end_ && end_->ok();
  if (!last) return StartWrite(&on_the_way_);
  finished_ = true;
  StartWriteAndFinish(&on_the_way_, grpc::WriteOptions(), grpc::Status::OK);
}

void GenerateReactor::FinishLocked(const absl::Status& status) {
  finished_ = true;
  Finish(ToGrpcStatus(status));
}

}  // namespace jevons
