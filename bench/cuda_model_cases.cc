// Whole steps of DeepSeek-V2-Lite's dimensions, all layers, random weights made on the device.
//
// A step is everything from token ids to the chosen tokens on the host: the step's arrays, the
// layers, the head, sampling (greedy). "step" waits for the tokens of each step, "queue" once after
// ten steps: what the device alone needs. "in_turn" is the same with each kernel after the end of the
// one in front: what early launches bring. "cublaslt" has the dense products of prompts from
// cuBLASLt: what it costs that a row does not depend on the step.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/cuda_cases.h"
#include "bench/cuda_random_backend.h"
#include "cuda/cuda_backend.h"
#include "model/model_runner.h"
#include "scheduler/block_manager.h"

namespace jevons {
namespace {

using Clock = std::chrono::steady_clock;
using Mode = RandomBackend::Mode;

constexpr double kSecondsPerCase = 1.5;
constexpr int kMostSteps = 200;

enum class Variant { kPlain, kInTurn, kCublasLt };

CudaBackendOptions OptionsOf(Variant variant, const CudaBenchOptions& bench) {
  return {.early_launches = variant != Variant::kInTurn,
          .cublaslt_rows = variant == Variant::kCublasLt ? FewestCublasLtRows(bench) : 0};
}

struct StepShape {
  const char* kind;
  int64_t num_seqs;
  int64_t num_tokens;  // of each sequence
  int64_t context;     // with those of the step
};

class ModelBench {
 public:
  ModelBench(CudaBench& bench, std::string name, bool fp8, Variant variant)
      : bench_(bench),
        name_(std::move(name)),
        fp8_(fp8),
        variant_(variant),
        config_(V2LiteConfig(bench.options().tiny)) {}

  absl::Status Run() {
    std::vector<StepShape> shapes = {{"decode", 1, 1, 1024},    {"decode", 8, 1, 1024},
                                     {"decode", 64, 1, 1024},   {"decode", 256, 1, 1024},
                                     {"prefill", 1, 512, 512},  {"prefill", 1, 4096, 4096},
                                     {"prefill", 1, 8192, 8192}};
    if (bench_.options().tiny) shapes = {{"decode", 1, 1, 70}, {"prefill", 1, 9, 9}};
    std::erase_if(shapes, [this](const StepShape& s) {
      return variant_ == (s.num_tokens > 1 ? Variant::kInTurn : Variant::kCublasLt);
    });
    RETURN_IF_ERROR(Load(shapes));
    for (const StepShape& shape : shapes) {
      if (bench_.TimeIsUp()) return absl::OkStatus();
      RETURN_IF_ERROR(RunShape(shape));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Load(const std::vector<StepShape>& shapes) {
    int64_t max_seqs = 1, max_tokens = 1, max_context = 1, max_blocks = 1;
    for (const StepShape& s : shapes) {
      max_seqs = std::max(max_seqs, s.num_seqs);
      max_tokens = std::max(max_tokens, s.num_seqs * s.num_tokens);
      max_context = std::max(max_context, s.context);
      max_blocks = std::max(max_blocks, s.num_seqs * BlocksFor(s.context));
    }
    const auto begin = Clock::now();
    ASSIGN_OR_RETURN(auto inner, CreateCudaBackend(OptionsOf(variant_, bench_.options())));
    backend_ = std::make_unique<RandomBackend>(std::move(inner));
    const ShapeCheckpoint checkpoint(config_, fp8_ ? DType::kF8E4M3 : DType::kBF16);
    ASSIGN_OR_RETURN(ModelWeights weights, LoadModelWeights(config_, checkpoint, *backend_));
    const double gigabytes = static_cast<double>(weights.matrix_bytes) * 1e-9;
    ASSIGN_OR_RETURN(runner_,
                     ModelRunner::Create(config_, std::move(weights), backend_.get(),
                                         {.max_tokens = static_cast<int32_t>(max_tokens),
                                          .max_num_seqs = static_cast<int32_t>(max_seqs),
                                          .max_positions = static_cast<int32_t>(max_context),
                                          .max_logits_rows = static_cast<int32_t>(max_seqs),
                                          .num_blocks = static_cast<int32_t>(max_blocks),
                                          .block_tokens = kKvBlockTokens}));
    bench_.report().Number(name_ + "/weights", gigabytes, "GB",
                           absl::StrFormat("made in %.1f s", SecondsSince(begin)));
    return absl::OkStatus();
  }

  static double SecondsSince(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

  void Fill(const StepShape& s) {
    Random random(5);
    const int64_t blocks = BlocksFor(s.context);
    token_ids_.clear();
    positions_.clear();
    slots_.clear();
    rows_.clear();
    cu_seqlens_q_ = {0};
    for (int64_t i = 0; i < s.num_seqs; ++i) {
      for (int64_t p = s.context - s.num_tokens; p < s.context; ++p) {
        token_ids_.push_back(static_cast<int32_t>(random.Below(config_.vocab_size)));
        positions_.push_back(static_cast<int32_t>(p));
        slots_.push_back(i * blocks * kKvBlockTokens + p);
      }
      rows_.push_back(static_cast<int32_t>(token_ids_.size()) - 1);
      cu_seqlens_q_.push_back(static_cast<int32_t>(token_ids_.size()));
    }
    context_lens_.assign(s.num_seqs, static_cast<int32_t>(s.context));
    block_tables_.resize(s.num_seqs * blocks);
    std::iota(block_tables_.begin(), block_tables_.end(), 0);
    max_blocks_ = static_cast<int32_t>(blocks);
    requests_.assign(rows_.size(), {.params = &greedy_});
  }

  absl::Status Step() {
    RETURN_IF_ERROR(runner_->Run({.token_ids = token_ids_,
                                  .positions = positions_,
                                  .slot_mapping = slots_,
                                  .cu_seqlens_q = cu_seqlens_q_,
                                  .context_lens = context_lens_,
                                  .block_tables = block_tables_,
                                  .max_blocks = max_blocks_}));
    ASSIGN_OR_RETURN(const auto results, runner_->Sample(rows_, requests_));
    logprob_ = results[0].chosen.logprob;
    return absl::OkStatus();
  }

  absl::Status RunShape(const StepShape& s) {
    Fill(s);
    backend_->set_mode(Mode::kCount);
    backend_->TakeCounts();
    RETURN_IF_ERROR(Step());
    const StepCounts counts = backend_->TakeCounts();
    const bool finite = std::isfinite(logprob_);
    for (const Mode mode : {Mode::kGraphs, Mode::kDirect}) {
      if (bench_.TimeIsUp()) return absl::OkStatus();
      if (mode == Mode::kDirect && variant_ != Variant::kPlain) continue;
      backend_->set_mode(mode);
      for (int i = 0; i < 3; ++i) RETURN_IF_ERROR(Step());
      for (const bool wait : {true, false}) {
        ASSIGN_OR_RETURN(const Sample time, Time(wait));
        Report(s,
               absl::StrCat(mode == Mode::kGraphs ? "graph" : "direct", wait ? "_step" : "_queue"),
               time, counts, finite);
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Sample> Time(bool wait) {
    const double limit = bench_.options().tiny ? 0 : bench_.options().quick ? 0.5 : kSecondsPerCase;
    constexpr int kQueued = 10;
    std::vector<double> seconds;
    const auto begin = Clock::now();
    while (seconds.size() < 5 || (SecondsSince(begin) < limit && seconds.size() < kMostSteps)) {
      const auto start = Clock::now();
      backend_->set_skip_reads(!wait);
      for (int i = 0; i + 1 < kQueued && !wait; ++i) {
        RETURN_IF_ERROR(Step());
      }
      backend_->set_skip_reads(false);
      RETURN_IF_ERROR(Step());
      seconds.push_back(SecondsSince(start) / (wait ? 1 : kQueued));
      if (bench_.options().tiny && !seconds.empty()) break;
    }
    return Summarize(std::move(seconds));
  }

  void Report(const StepShape& s, const std::string& how, const Sample& time,
              const StepCounts& counts, bool finite) {
    const bool decode = s.num_tokens == 1;
    const CudaCeilings& ceilings = bench_.report().ceilings();
    const double tokens = static_cast<double>(s.num_seqs * s.num_tokens);
    const DecodeLimit limit = LimitOfDecode(config_, s.num_seqs, s.context, counts.experts,
                                            fp8_ ? 1.0005 : 2, ceilings.read, ceilings.flops(fp8_));
    BenchRow row;
    row.name = absl::StrCat(name_, "/", s.kind, "_", decode ? s.num_seqs : s.num_tokens, "_", how);
    row.time = time;
    row.fp8 = fp8_;
    row.bytes = counts.weight_bytes + counts.cache_bytes;
    row.flops = decode ? 0 : FlopsOfPrefill(config_, s.num_tokens);
    const double rate = tokens / time.median;
    row.note = absl::StrFormat("%.0f tok/s, %.1f experts", rate, counts.experts);
    row.detail = absl::StrFormat(
        ", \"tokens_per_second\": %.6g, \"experts\": %.2f, \"ops\": %d, \"weight_gb\": %.4f, "
        "\"cache_gb\": %.4f",
        rate, counts.experts, counts.num_ops, counts.weight_bytes * 1e-9,
        counts.cache_bytes * 1e-9);
    if (decode && limit.seconds > 0) {
      absl::StrAppendFormat(&row.note, ", %.1f %% of %.0f", 100 * limit.seconds / time.median,
                            tokens / limit.seconds);
      absl::StrAppendFormat(&row.detail, ", \"limit_tokens_per_second\": %.6g, \"of_limit\": %.4f",
                            tokens / limit.seconds, limit.seconds / time.median);
    }
    if (!finite) row.note += ", NOT FINITE";
    bench_.report().Add(row);
  }

  CudaBench& bench_;
  const std::string name_;
  const bool fp8_;
  const Variant variant_;
  const ModelConfig config_;
  std::unique_ptr<RandomBackend> backend_;
  std::unique_ptr<ModelRunner> runner_;
  std::vector<int32_t> token_ids_, positions_, cu_seqlens_q_, context_lens_, block_tables_, rows_;
  std::vector<int64_t> slots_;
  int32_t max_blocks_ = 0;
  const SamplingParams greedy_ = {.temperature = 0, .logit_bias = {}};
  std::vector<SampleRequest> requests_;
  float logprob_ = 0;
};

}  // namespace

std::vector<CudaCase> ModelCases() {
  std::vector<CudaCase> out;
  for (const bool fp8 : {false, true}) {
    const std::string name = absl::StrCat("v2lite/model_", fp8 ? "fp8" : "bf16");
    out.push_back({name, "whole steps, 27 layers, with and without graphs",
                   [=](CudaBench& b) { return ModelBench(b, name, fp8, Variant::kPlain).Run(); }});
    const std::string in_turn = name + "_in_turn";
    out.push_back({in_turn, "steps of decode without early launches", [=](CudaBench& b) {
                     return ModelBench(b, in_turn, fp8, Variant::kInTurn).Run();
                   }});
  }
  // FP8 weights stay with our kernel.
  const std::string cublaslt = "v2lite/model_bf16_cublaslt";
  out.push_back({cublaslt, "prompts with dense products by cuBLASLt", [=](CudaBench& b) {
                   return ModelBench(b, cublaslt, false, Variant::kCublasLt).Run();
                 }});
  return out;
}

}  // namespace jevons
