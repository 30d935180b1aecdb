// The memory of a step: planned once, so that what is announced is what is taken.
#pragma once

#include <algorithm>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/kv_cache.h"
#include "ops/backend.h"

namespace jevons {

// How a group's exchanges and its computing share the time. The bits are the same.
enum class ExchangeOverlap {
  kOff,      // an exchange is waited for where it starts
  kShared,   // shared experts are computed while tokens are on their way
  kBatches,  // and large steps are cut in two: one half computes while what the other sends travels
};
// "off", "shared", "batches"
std::string_view ExchangeOverlapName(ExchangeOverlap overlap);

// How the rows that experts read travel between ranks.
enum class ExchangePrecision {
  kExact,  // as they are
  kFp8,  // rounded to FP8, on their own rank too: the bits are those of any group, not of one rank alone
};
// "exact", "fp8"
std::string_view ExchangePrecisionName(ExchangePrecision precision);

struct ModelRunnerOptions {
  int32_t max_tokens = 512;      // query tokens of one step
  int32_t max_num_seqs = 64;     // sequences of one step
  int32_t max_positions = 4096;  // tokens of one sequence
  int32_t max_logits_rows = 64;  // rows of one Logits or Sample call
  int32_t num_valid_ids = 0;     // ids that may be drawn; 0: all of the vocabulary
  int32_t num_blocks = 64;       // of the KV cache
  int32_t block_tokens = 64;
  KvCacheType kv_cache = KvCacheType::kAuto;
  // Of a group that shares the experts. Every rank's max_tokens is the same.
  int32_t num_ranks = 1;
  int32_t slots_per_rank = 0;  // for routed experts; 0: no group
  // Largest step, in tokens of each rank, whose exchange has sizes that do not depend on the
  // choices but on its size alone; 0: none.
  int32_t masked_capacity = 0;
  ExchangeOverlap exchange_overlap = ExchangeOverlap::kOff;
  ExchangePrecision exchange_precision = ExchangePrecision::kExact;
  int32_t min_split_tokens = 64;  // of some rank, for a step to be cut in two

  bool splits_steps() const { return exchange_overlap == ExchangeOverlap::kBatches; }
  int64_t max_sequence_blocks() const { return (max_positions + block_tokens - 1) / block_tokens; }
};

// Rows are tokens but where said. Absent where the model or the backend has no use for it.
struct Workspace {
  DeviceTensor x, norm, delta;  // residual, what a block reads, what a block gives
  DeviceTensor qkv, q_a, q, q_latent, attended, values;
  DeviceTensor gate_up, act, shared;
  DeviceTensor router_logits, topk_idx, topk_weights, cu_rows, row_token, token_row;
  DeviceTensor expert_gate_up, expert_act, expert_out;  // rows are choices
  // Of a group of ranks. Rows go to others, are got from them, are results for them, come back.
  DeviceTensor counts, send_token, send_slots, send_x, return_row;
  DeviceTensor recv_slots, recv_packed, recv_x, result_row, results, returned;
  DeviceTensor row_idx, hidden, logits;  // rows are those of a Logits call
  DeviceTensor step_arrays;              // bytes: all index arrays of a step
};

struct PlannedTensor {
  DeviceTensor* tensor = nullptr;
  DType dtype = DType::kF32;
  int64_t num_rows = 0;
  int64_t width = 0;      // 0: one dimension
  bool receives = false;  // from other ranks

  int64_t bytes() const { return num_rows * std::max<int64_t>(width, 1) * DTypeBytes(dtype); }
};

// What of `workspace` a runner needs. Order is that of allocation.
std::vector<PlannedTensor> PlanWorkspace(const ModelConfig& config,
                                         const ModelRunnerOptions& options,
                                         const BackendTraits& traits, Workspace& workspace);

int64_t WorkspaceBytes(const ModelConfig& config, const ModelRunnerOptions& options,
                       const BackendTraits& traits);

}  // namespace jevons
