// The step loop: joins scheduler and model on one thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "engine/generation.h"
#include "engine/token_stream.h"
#include "model/chat_format.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/tokenizer.h"
#include "model/workspace.h"
#include "parallel/communicator.h"

namespace jevons {

// kAuto: CUDA where there is a device, else the CPU; for a group of ranks what its transport joins.
enum class BackendKind { kAuto, kCpu, kCuda };

// kAuto: where the device samples, a step is queued before the tokens of the one before it are known
// to the host. kOff: each step ends before the next one is planned. Both give the same tokens.
enum class StepOverlap { kAuto, kOff };

// kOn: blocks of the KV cache stay known when their sequence ends, until the memory is needed, and one
// that begins with the same tokens takes them. Both give the same tokens.
enum class PrefixCaching { kOn, kOff };

// How the ranks of a group reach each other. kThreads: all of them in this process, on the CPU.
// kProcesses: one process each, over Gloo; with kCuda each on its GPU, whose data goes over NCCL. kNccl:
// all of them in this process, rank r on GPU r.
enum class RankTransport { kThreads, kProcesses, kNccl };

struct EngineOptions {
  std::string model_folder;
  std::string model_name;  // empty: the folder's own name
  BackendKind backend = BackendKind::kAuto;
  int32_t device = 0;         // which GPU, where this process takes one
  std::string cpu_target;     // empty: the best of this machine; else baseline, avx2, avx512
  int32_t num_threads = 0;    // 0: the CPUs that this process may use
  int32_t max_num_seqs = 32;  // [1, 1024]
  int32_t max_num_batched_tokens = 512;  // [max_num_seqs, 65536]
  int32_t max_prefill_chunk_tokens = 0;  // 0: no limit of its own
  int32_t max_model_len = 0;             // 0: what model and KV pool allow
  // 0: max_num_seqs * max_model_len, at most a quarter of free memory on the CPU, and on a device
  // all that is left but a reserve.
  int64_t kv_cache_tokens = 0;
  KvCacheType kv_cache = KvCacheType::kAuto;
  // What products of FP8 weights read: kFp8 for a checkpoint that has such.
  ActivationPrecision activation_precision = ActivationPrecision::kExact;
  int32_t max_queued_requests = 1024;  // [1, 1000000]
  StepOverlap overlap = StepOverlap::kAuto;
  PrefixCaching prefix_cache = PrefixCaching::kOn;
  // Ranks that share the experts, [1, 256]. Threads, sequences, batch, KV cache and queue above are
  // then those of each rank.
  int32_t num_ranks = 1;
  RankTransport rank_transport = RankTransport::kThreads;
  int32_t num_redundant_experts = 0;      // slots beside one for each expert, [0, 65536]
  int32_t balance_interval_steps = 1000;  // between looks at the experts' load; 0: never
  ExchangeOverlap exchange_overlap = ExchangeOverlap::kShared;
  ExchangePrecision exchange_precision = ExchangePrecision::kExact;
  ExchangeBy exchange_by = ExchangeBy::kCalls;  // of ranks on GPUs
  // Steps of at least so many tokens have their dense products from cuBLASLt, on a GPU and where the
  // weight is bf16, [0, 65536]; 0: none. The same request may then give other bytes beside others.
  int32_t cublaslt_rows = 0;
};

// The numbers of a rank, or of a group: sums, and the largest where that makes more sense.
struct EngineStats {
  int64_t num_queued = 0;
  int64_t num_running = 0;
  int64_t num_blocks = 0;
  int64_t num_free_blocks = 0;  // with those that only the prefix cache knows
  int64_t num_steps = 0;
  int64_t num_preemptions = 0;
  int64_t num_requests = 0;       // accepted since start
  int64_t num_prompt_tokens = 0;  // computed since start
  int64_t num_cached_tokens = 0;  // of prompts, found in the cache instead
  int64_t num_new_tokens = 0;
  int64_t num_moved_layers = 0;  // whose experts were placed anew
  int64_t group_epoch = 0;       // Membership::epoch of the group that it steps in
  // Since the end of the last step; zero without work for it, or for the group that it steps with.
  absl::Duration step_age = absl::ZeroDuration();
  // Between two tokens of one request, since start.
  absl::Duration largest_token_gap = absl::ZeroDuration();
  int32_t num_expert_slots = 0;  // of each MoE layer on a rank
  // Of a rank alone, in the exchanges of the group with this epoch; ranks by number from the start.
  ExchangePlace place = {};
  int64_t place_epoch = -1;  // -1: it is in none
};

// What is known of a rank, which may be in another process.
struct RankStats {
  int32_t rank = 0;
  absl::Status failure = absl::OkStatus();  // why it is not in the group any more
  EngineStats stats;                        // as it said last
};

// Thread-safe. Owns the engine thread, which owns every sequence, the scheduler and the blocks.
class Engine {
 public:
  virtual ~Engine() = default;  // drains with no patience: running requests end with kCancelled

  // Loads the model and starts the thread, or those of a group of ranks that work as one. Errors
  // name flag, limit and value, or the file at fault. A group of processes is not made here
  // (engine/process_rank.h).
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options,
                                                        const Clock* clock);

  // Queues a request. INVALID_ARGUMENT as ValidateGeneration; RESOURCE_EXHAUSTED when
  // max_queued_requests wait; UNAVAILABLE while draining. After OK the stream gets exactly one End,
  // whatever happens. `ready`: see TokenStream.
  virtual absl::StatusOr<std::shared_ptr<TokenStream>> Submit(GenerationRequest request,
                                                              std::function<void()> ready = {}) = 0;

  // Takes no more requests, lets the accepted ones finish for at most `patience`, ends the rest
  // with UNAVAILABLE, and stops the thread. May be called again with no effect.
  virtual void Drain(absl::Duration patience) = 0;

  // OK while the engine serves. Else why it does not any more: the device failed, every stream has
  // ended with this status, and Submit returns it. The process should end and start anew.
  virtual absl::Status failure() const = 0;

  virtual EngineStats stats() const = 0;
  // By rank, also those that are lost. Waits for none.
  virtual std::vector<RankStats> rank_stats() const {
    return {{.failure = failure(), .stats = stats()}};
  }
  // Blocks, scheduler and sequences agree; run on the engine thread between two steps.
  virtual absl::Status CheckIntegrity() = 0;

  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual const ChatFormat& chat_format() const = 0;
  virtual const GenerationLimits& limits() const = 0;
  virtual const EngineOptions& options() const = 0;  // resolved: no zeros left
  virtual std::string backend_description() const = 0;
};

}  // namespace jevons
