// How long a step takes on each of many GPUs that share the experts of a model: arithmetic from
// rates, links and formulas. Nothing here measures. docs/expert-parallel.md has the sources.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "model/config.h"

namespace jevons::ep_sim {

// Bytes a second are of one direction and one GPU; links as the maker states them.
struct Gpu {
  std::string name = {};
  double memory_bytes = 0;
  double read = 0;  // of memory, as kernels reach it
  double nvlink = 0;
  double rdma = 0;
  int32_t gpus_per_node = 8;
  int32_t num_sms = 132;
};

// Rates of kernels, in flops and bytes a second and in seconds.
struct Kernels {
  std::string name = {};
  double read_share = 1;   // of Gpu::read, where weights decide
  double linear = 0;       // products with FP8 weights
  double head = 0;         // with bf16 weights
  double grouped = 0;      // all routed experts of a layer, with what stands between the products
  double mla_decode = 0;   // absorbed form
  double mla_prefill = 0;  // in the form of `absorbed_prefill`
  bool absorbed_prefill = false;
  double mla_floor = 0;      // of one attention call, beside its work
  double boundary = 0;       // from kernel to kernel
  int32_t num_launches = 0;  // a layer, without the exchanges
};

// What carries an exchange. `efficiency`: of both links.
struct Transport {
  std::string name = {};
  double efficiency = 1;
  double base = 0;         // seconds of an exchange without bytes
  double per_message = 0;  // seconds for each other rank
  double count = 0;        // seconds a layer until all know the sizes, where they are exact
  int32_t num_sms = 0;     // lost to products that run at the same time
};

// A row goes from rank to rank for each choice; or once for each rank, or for each node and then on
// inside it, that holds some of a token's choices. Back, the last two are sums in an order that
// depends on who holds what. A sum for each group of the router does not, and is made on the node
// that holds the whole group.
enum class Send { kPerChoice, kPerRank, kPerNode, kPerGroup };
enum class Sizes {
  kExact,  // what the router chose
  kPadded  // what it may choose at most for the tokens of the step, between each two ranks
};
enum class Overlap { kNone, kTwoBatches };
enum class Routing {
  kUniform,  // experts at random, group limits kept
  kBalanced  // round robin: as many distinct ones as there can be
};

struct Deployment {
  Gpu gpu;
  Kernels kernels;
  Transport transport;
  int32_t num_ranks = 1;
  int32_t slots_per_rank = 0;  // experts that a rank holds, replicas among them
  Send dispatch = Send::kPerChoice;
  Send combine = Send::kPerChoice;
  Sizes sizes = Sizes::kExact;
  double dispatch_value_bytes = 2;
  double combine_value_bytes = 2;
  Overlap overlap = Overlap::kNone;
  bool shared_fills_gaps = false;  // the shared expert runs while rows are under way
  Routing routing = Routing::kUniform;
  double imbalance = 1;  // rows of the busiest rank over the mean
  double weight_value_bytes = 1 + 4.0 / (128 * 128);
  double kv_value_bytes = 2;
  double memory_share = 0.9;

  int32_t num_slots() const { return num_ranks * slots_per_rank; }
  int32_t num_nodes() const { return (num_ranks + gpu.gpus_per_node - 1) / gpu.gpus_per_node; }
  int32_t ranks_per_node() const { return num_ranks / num_nodes(); }
};

// Of one rank; all ranks have the same.
struct Step {
  bool prefill = false;
  int32_t num_seqs = 0;
  int32_t tokens_per_seq = 1;  // of a prompt; in decode 1, or 1 + drafts to check
  int64_t context = 0;         // tokens cached before

  double num_tokens() const { return static_cast<double>(num_seqs) * tokens_per_seq; }
};

enum Part {
  kProjections,
  kAttention,
  kDense,
  kRouter,
  kExperts,
  kShared,
  kRows,  // norms, residuals, combine: activations alone
  kHead,
  kSampler,
  kLaunches,
  kNumParts
};
std::string_view PartName(Part part);

struct Work {
  double bytes = 0;
  double flops = 0;
};

// Bytes that a rank sends in one exchange, and to how many ranks.
struct Traffic {
  double nvlink_bytes = 0;
  double rdma_bytes = 0;
  int32_t num_messages = 0;
};

// Seconds of one layer for `step`, in one batch.
struct LayerTime {
  std::array<double, kNumParts> parts = {};
  double dispatch = 0;
  double combine = 0;
};

// Of one GPU, in bytes.
struct Memory {
  double replicated = 0;
  double experts = 0;
  double cache = 0;
  double activations = 0;
  double exchange = 0;  // rows that arrive
  double limit = 0;

  double total() const { return replicated + experts + cache + activations + exchange; }
};

struct StepTime {
  double seconds = 0;
  std::array<double, kNumParts> parts = {};  // adds up to what is not exposed
  double dispatch = 0;                       // on the links
  double combine = 0;
  double exposed = 0;  // of both, what no kernel covers
  Memory memory;
  std::string binds;  // the largest share of the step

  double exposed_share() const { return exposed / seconds; }
};

// INVALID_ARGUMENT names the number that fits no model, machine or step.
absl::Status Validate(const ModelConfig& config, const Deployment& deployment, const Step& step);

// Chance that a token has a choice among `num_experts` given ones, whole groups first. Experts are
// equally likely; of n_group groups topk_group are kept.
double HitProbability(const ModelConfig& config, double num_experts);
// Experts of a rank that get a row when all ranks together have `num_tokens`.
double DistinctExperts(const ModelConfig& config, const Deployment& deployment, double num_tokens);

Traffic DispatchTraffic(const ModelConfig& config, const Deployment& deployment, double num_tokens);
Traffic CombineTraffic(const ModelConfig& config, const Deployment& deployment, double num_tokens);
// base + messages + the slower link, which run side by side. 0 where there is one rank.
double ExchangeSeconds(const Deployment& deployment, const Traffic& traffic);

// Of a MoE layer, or of a dense one. The step is taken as it is: `deployment.overlap` only decides
// whether the exchanges take SMs away.
LayerTime MoeLayerTime(const ModelConfig& config, const Deployment& deployment, const Step& step);
LayerTime DenseLayerTime(const ModelConfig& config, const Deployment& deployment, const Step& step);

// Of a MoE layer, what is left of the exchanges. Without overlap: all, but for what the shared
// expert covers. With two batches, `layer` is of half a step; batch 0 and 1 take turns, so dispatch
// 0 is behind attention 1, dispatch 1 behind experts 0, combine 0 behind experts 1, combine 1 behind
// the next layer's attention 0.
double ExposedSeconds(const Deployment& deployment, const LayerTime& layer);

Memory MemoryOf(const ModelConfig& config, const Deployment& deployment, const Step& step);

// The whole step. RESOURCE_EXHAUSTED, with what each part takes, where it does not fit a GPU. A
// step whose sequences cannot be halved runs as one batch.
absl::StatusOr<StepTime> Simulate(const ModelConfig& config, const Deployment& deployment,
                                  const Step& step);

}  // namespace jevons::ep_sim
