#include "bench/ep_sim_checks.h"

#include "absl/strings/str_format.h"
#include "bench/ep_sim_machines.h"

namespace jevons::ep_sim {
namespace {

constexpr double kMicro = 1e-6;
constexpr char kTrtLlm[] = "TensorRT-LLM 1.3";
constexpr char kSglang[] = "SGLang 0.5.14";
constexpr char kDeepEp[] = "DeepEP V1";
constexpr char kLmsys[] = "LMSYS 2025-05-05";
constexpr char kDeepSeek[] = "DeepSeek 2025-03-01";

// One GPU with a whole layer's experts, balanced as the published ones.
Deployment OneGpu(const Gpu& gpu) {
  Deployment d;
  d.gpu = gpu;
  d.kernels = PublishedKernels(gpu);
  d.slots_per_rank = V3Shape().n_routed_experts;
  d.routing = Routing::kBalanced;
  return d;
}

// What SGLang and DeepSeek run: rows to experts in FP8, back in bf16; balanced but for what the
// source says of it.
Deployment Published(const Gpu& gpu, int32_t num_ranks, int32_t slots_per_rank, bool prefill) {
  Deployment d = Baseline(gpu, num_ranks);
  d.slots_per_rank = slots_per_rank;
  d.imbalance = 1;
  d.dispatch_value_bytes = kFp8RowBytes;
  if (prefill) {
    d.transport = Forwarding();
    d.dispatch = Send::kPerNode;
    d.combine = Send::kPerNode;
  }
  return d;
}

void AddExperts(std::vector<Check>& out) {
  struct Point {
    const char* source;
    Gpu gpu;
    int32_t tokens;
    double us;
    bool is_input;
  };
  const Point points[] = {{kTrtLlm, H100(), 1, 192, false},    {kSglang, H100(), 1, 142, false},
                          {kTrtLlm, H100(), 8, 976, false},    {kTrtLlm, H100(), 64, 3725, true},
                          {kTrtLlm, H100(), 256, 3886, false}, {kTrtLlm, H100(), 1024, 4543, false},
                          {kSglang, H200(), 1, 109, false},    {kTrtLlm, H200(), 32, 2644, true}};
  for (const Point& point : points) {
    const LayerTime layer =
        MoeLayerTime(V3Shape(), OneGpu(point.gpu), {.num_seqs = point.tokens, .context = 0});
    out.push_back({"kernel", absl::StrFormat("experts, %s, %d rows", point.gpu.name, point.tokens),
                   point.source, "us", point.us, layer.parts[kExperts] / kMicro, point.is_input});
  }
}

void AddAttention(std::vector<Check>& out) {
  struct Point {
    int32_t seqs;
    int64_t context;
    double us;
    bool is_input;
  };
  constexpr Point kCore[] = {{1, 1024, 17.6, true},   {32, 1024, 50.6, false},
                             {64, 1024, 55.9, false}, {256, 1024, 187, false},
                             {64, 4096, 139, false},  {256, 4096, 535, false},
                             {256, 16384, 1862, true}};
  for (const Point& point : kCore) {
    const LayerTime layer =
        MoeLayerTime(V3Shape(), OneGpu(H100()), {.num_seqs = point.seqs, .context = point.context});
    out.push_back({"kernel", absl::StrFormat("MLA core, H100, %d x %d", point.seqs, point.context),
                   kTrtLlm, "us", point.us, layer.parts[kAttention] / kMicro, point.is_input});
  }
  // Norm, projections, rotation, store, core and output: six kernels beside the core's floor.
  constexpr Point kBlock[] = {
      {1, 1024, 118, false}, {64, 1024, 162, false}, {256, 1024, 355, false}};
  for (const Point& point : kBlock) {
    const Deployment d = OneGpu(H100());
    const LayerTime layer =
        MoeLayerTime(V3Shape(), d, {.num_seqs = point.seqs, .context = point.context});
    const double seconds =
        layer.parts[kAttention] + layer.parts[kProjections] + 6 * d.kernels.boundary;
    out.push_back({"kernel", absl::StrFormat("attention block, H100, %d x 1024", point.seqs),
                   kTrtLlm, "us", point.us, seconds / kMicro, false});
  }
}

void AddExchanges(std::vector<Check>& out) {
  struct Point {
    int32_t ranks;
    double dispatch_us;
    double combine_us;
  };
  constexpr Point kPoints[] = {{8, 77, 114},   {16, 118, 195},  {32, 155, 273},
                               {64, 173, 314}, {128, 192, 369}, {256, 194, 360}};
  for (const Point& point : kPoints) {
    const Deployment d =
        Published(H800(), point.ranks, (256 + point.ranks - 1) / point.ranks, false);
    const double dispatch = ExchangeSeconds(d, DispatchTraffic(V3Shape(), d, 128));
    const double combine = ExchangeSeconds(d, CombineTraffic(V3Shape(), d, 128));
    const bool is_input = point.ranks == 128;
    out.push_back({"exchange", absl::StrFormat("dispatch, H800, 128 rows, EP%d", point.ranks),
                   kDeepEp, "us", point.dispatch_us, dispatch / kMicro, is_input});
    out.push_back({"exchange", absl::StrFormat("combine, H800, 128 rows, EP%d", point.ranks),
                   kDeepEp, "us", point.combine_us, combine / kMicro, is_input});
  }
}

// Tokens a second and GPU. `drafts_kept`: of the tokens to check beyond the first.
absl::StatusOr<double> Speed(const Deployment& d, const Step& step, double drafts_kept = 0) {
  ASSIGN_OR_RETURN(const StepTime time, Simulate(V3Shape(), d, step));
  if (step.prefill) return step.num_tokens() / time.seconds;
  return step.num_seqs * (1 + drafts_kept * (step.tokens_per_seq - 1)) / time.seconds;
}

absl::Status AddPrefill(std::vector<Check>& out) {
  struct Point {
    const char* name;
    const char* source;
    Gpu gpu;
    int32_t prompt;
    double node;  // tokens a second
  };
  const Point points[] = {
      {"prefill, 16 x 1k, H100 EP32", kLmsys, H100(), 1024, 57674},
      {"prefill, 8 x 2k, H100 EP32", kLmsys, H100(), 2048, 54543},
      {"prefill, 4 x 4k, H100 EP32", kLmsys, H100(), 4096, 50302},
      {"prefill, 4 x 4k, H100 EP32, experts at random", kLmsys, H100(), 4096, 59337},
      {"prefill, 4 x 4k, H800 EP32, DeepSeek's profile", kLmsys, H800(), 4096, 62713},
      {"prefill, H800 EP32, DeepSeek's service, a day", kDeepSeek, H800(), 4096, 32206}};
  for (const Point& point : points) {
    const Deployment d = Published(point.gpu, 32, 9, true);
    ASSIGN_OR_RETURN(const double speed, Speed(d, {.prefill = true,
                                                   .num_seqs = 16384 / point.prompt,
                                                   .tokens_per_seq = point.prompt}));
    out.push_back({"step", point.name, point.source, "tok/s/GPU", point.node / 8, speed, false});
  }
  return absl::OkStatus();
}

absl::Status AddDecode(std::vector<Check>& out) {
  const Deployment sglang = Published(H100(), 72, 4, false);
  const Step plain = {.num_seqs = 256, .context = 2000};
  const Step drafts = {.num_seqs = 128, .tokens_per_seq = 2, .context = 4000};
  ASSIGN_OR_RETURN(const double speed, Speed(sglang, plain));
  out.push_back({"step", "decode, 256 x 2k, H100 EP72", kLmsys, "tok/s/GPU", 22282.0 / 8, speed});
  ASSIGN_OR_RETURN(const double checked, Speed(sglang, drafts, 0.6));
  out.push_back({"step", "decode, 128 x 4k, a draft, 60 % kept, H100 EP72", kLmsys, "tok/s/GPU",
                 17373.0 / 8, checked});
  ASSIGN_OR_RETURN(const double profile,
                   Speed(Published(H800(), 128, 2, false), {.num_seqs = 128, .context = 4096}));
  out.push_back({"step", "decode, 128 x 4k, H800 EP128, DeepSeek's profile", kLmsys, "tok/s/GPU",
                 18598.0 / 8, profile});
  ASSIGN_OR_RETURN(const double service,
                   Speed(Published(H800(), 144, 2, false), {.num_seqs = 128, .context = 4989}));
  out.push_back({"step", "decode, 128 x 5k, H800 EP144, DeepSeek's service, a day", kDeepSeek,
                 "tok/s/GPU", 14800.0 / 8, service});

  Deployment single = sglang;
  single.overlap = Overlap::kNone;
  ASSIGN_OR_RETURN(const double speed_single, Speed(single, plain));
  out.push_back({"ratio", "two batches over one, decode, 256 x 2k", kLmsys, "x", 1.255,
                 speed / speed_single});
  ASSIGN_OR_RETURN(const double checked_single, Speed(single, drafts, 0.6));
  out.push_back({"ratio", "two batches over one, decode, 128 x 4k, a draft", kLmsys, "x",
                 17552.0 / 12929, checked / checked_single});
  const Step few = {.num_seqs = 32, .context = 2000};
  ASSIGN_OR_RETURN(const double few_two, Speed(sglang, few));
  ASSIGN_OR_RETURN(const double few_one, Speed(single, few));
  out.push_back(
      {"ratio", "two batches over one, decode, 32 x 2k", kLmsys, "x", 0.73, few_two / few_one});
  return absl::OkStatus();
}

absl::Status AddPrefillRatio(std::vector<Check>& out) {
  const Deployment two = Published(H100(), 32, 9, true);
  Deployment one = two;
  one.overlap = Overlap::kNone;
  const Step step = {.prefill = true, .num_seqs = 4, .tokens_per_seq = 2048};
  ASSIGN_OR_RETURN(const double speed_two, Speed(two, step));
  ASSIGN_OR_RETURN(const double speed_one, Speed(one, step));
  // 27 to 35 %.
  out.push_back({"ratio", "two batches over one, prefill, 8k tokens", kLmsys, "x", 1.31,
                 speed_two / speed_one});
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Check>> PublishedChecks() {
  std::vector<Check> out;
  AddExperts(out);
  AddAttention(out);
  AddExchanges(out);
  RETURN_IF_ERROR(AddPrefill(out));
  RETURN_IF_ERROR(AddDecode(out));
  RETURN_IF_ERROR(AddPrefillRatio(out));
  return out;
}

}  // namespace jevons::ep_sim
