// One Generate call: takes from its TokenStream, writes to its client.
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "base/mutex.h"
#include "base/status.h"
#include "engine/engine.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "jevons/v1/inference.pb.h"
#include "server/prompt.h"
#include "server/response_mapping.h"
#include "server/stream_pump.h"

namespace jevons {

class CallRegistry;

// Thread-safe; gRPC's threads, the pump and the work thread call it. Holds itself until gRPC says
// OnDone. At most one write is on its way at any time, so a client that reads slowly finds more in
// each message, and nobody waits for it.
class GenerateReactor : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                        public PumpTarget,
                        public std::enable_shared_from_this<GenerateReactor> {
 public:
  struct Deps {
    Engine* engine = nullptr;
    const PromptBuilder* prompts = nullptr;
    StreamPump* pump = nullptr;
    CallRegistry* registry = nullptr;
  };
  // `deadline` is the call's.
  static std::shared_ptr<GenerateReactor> Create(const Deps& deps, absl::Time deadline);

  // Parses, checks and submits the request; may take long for a long text. Call once.
  void Submit(const grpc::ByteBuffer& bytes);
  // Ends the call with `status`, after the write on its way, if it has not ended.
  void Abort(absl::Status status);

  void Pump() override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateReactor(const Deps& deps, absl::Time deadline) : deps_(deps), deadline_(deadline) {}

  absl::Status SubmitRequest(const grpc::ByteBuffer& bytes);
  void PumpLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Turns the stream's next chunk into messages; false if there is none.
  bool TakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Deps deps_;
  const absl::Time deadline_;
  std::shared_ptr<GenerateReactor> self_;  // until OnDone
  uint64_t number_ = 0;                    // in the registry

  Mutex mutex_;
  std::shared_ptr<TokenStream> stream_ ABSL_GUARDED_BY(mutex_);
  TokenIdMode token_ids_ ABSL_GUARDED_BY(mutex_) = TokenIdMode::kOmit;
  std::deque<v1::GenerateResponse> pending_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer on_the_way_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);    // the stream's, after `pending_`
  std::optional<absl::Status> abort_ ABSL_GUARDED_BY(mutex_);  // at once
};

}  // namespace jevons
