#include "bench/cuda_cases.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "bench/cuda_kernels.h"
#include "bench/model_shapes.h"
#include "cuda/cuda_backend.h"
#include "cuda/cuda_error.h"

namespace jevons {
namespace {

using Clock = std::chrono::steady_clock;

// Recorded calls, and the time over which the host's clock runs: its own cost then disappears.
constexpr double kGraphSeconds = 2e-3;
constexpr double kSampleSeconds = 6e-3;
constexpr int kMostCalls = 200;
// Of a call of which nothing is known.
constexpr double kLeastSeconds = 3e-6;

TensorView ViewOf(void* data, DType dtype, const std::vector<int64_t>& shape) {
  switch (shape.size()) {
    case 1:
      return TensorView(data, dtype, {shape[0]});
    case 2:
      return TensorView(data, dtype, {shape[0], shape[1]});
    default:
      return TensorView(data, dtype, {shape[0], shape[1], shape[2]});
  }
}

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

absl::StatusOr<Backend*> CudaBench::backend() {
  if (backend_ == nullptr) {
    ASSIGN_OR_RETURN(backend_, CreateCudaBackend({.early_launches = false}));
  }
  return backend_.get();
}

absl::StatusOr<std::string> CudaBench::NoteOf(Backend& backend, const TensorView& out) {
  if (out.dtype != DType::kBF16 && out.dtype != DType::kF32) return std::string();
  const int64_t count = std::min<int64_t>(out.shape[out.rank - 1], 64);
  std::vector<float> host(count);
  RETURN_IF_ERROR(backend.Read(TensorView(host.data(), out.dtype, {count}),
                               TensorView(out.data, out.dtype, {count})));
  const auto* halves = reinterpret_cast<const uint16_t*>(host.data());
  for (int64_t i = 0; i < count; ++i) {
    const float value = out.dtype == DType::kF32 ? host[i] : Bf16ToFloat(halves[i]);
    if (!std::isfinite(value)) return std::string("NOT FINITE");
  }
  return std::string();
}

absl::Status CudaBench::Measure(BenchRow row, int rotations, const TensorView& out,
                                absl::FunctionRef<absl::Status(int)> op) {
  ASSIGN_OR_RETURN(Backend * shared, backend());
  return MeasureOn(*shared, std::move(row), rotations, out, op);
}

absl::Status CudaBench::MeasureOn(Backend& backend, BenchRow row, int rotations,
                                  const TensorView& out, absl::FunctionRef<absl::Status(int)> op) {
  RETURN_IF_ERROR(op(0));
  RETURN_IF_ERROR(backend.Wait());
  const CudaCeilings& limit = report_.ceilings();
  double seconds = kLeastSeconds;
  if (limit.read > 0) seconds = std::max(seconds, row.bytes / limit.read);
  if (limit.bf16 > 0) seconds = std::max(seconds, row.flops / limit.bf16);
  const int wanted = options_.tiny ? 1 : static_cast<int>(kGraphSeconds / seconds);
  const int calls = std::clamp(wanted, 1, kMostCalls) + rotations - 1;
  const int64_t key = next_key_++;
  const auto run = [&] {
    return backend.RunStep(key, [&]() -> absl::Status {
      for (int i = 0; i < calls; ++i) RETURN_IF_ERROR(op(i % rotations));
      return absl::OkStatus();
    });
  };
  for (int i = 0; i < 2; ++i) RETURN_IF_ERROR(run());  // once as it is, once recorded
  RETURN_IF_ERROR(backend.Wait());
  auto begin = Clock::now();
  RETURN_IF_ERROR(run());
  RETURN_IF_ERROR(backend.Wait());
  const double one = SecondsSince(begin);
  const int replays = options_.tiny ? 1 : std::max(1, static_cast<int>(kSampleSeconds / one));
  std::vector<double> samples;
  for (int i = 0; i < (options_.tiny ? 1 : options_.quick ? 3 : 7); ++i) {
    begin = Clock::now();
    for (int j = 0; j < replays; ++j) RETURN_IF_ERROR(run());
    RETURN_IF_ERROR(backend.Wait());
    samples.push_back(SecondsSince(begin) / (double{1} * replays * calls));
  }
  row.time = Summarize(std::move(samples));
  ASSIGN_OR_RETURN(const std::string note, NoteOf(backend, out));
  if (!note.empty()) row.note = row.note.empty() ? note : note + ", " + row.note;
  report_.Add(row);
  return absl::OkStatus();
}

absl::StatusOr<TensorView> CudaTensors::New(DType dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = DTypeBytes(dtype);
  for (int64_t size : shape) bytes *= size;
  // Whole units of what FillRandom writes.
  ASSIGN_OR_RETURN(buffers_.emplace_back(), backend_.Allocate((bytes + 15) / 16 * 16));
  return ViewOf(buffers_.back()->data(), dtype, shape);
}

absl::StatusOr<TensorView> CudaTensors::Random(DType dtype, std::vector<int64_t> shape,
                                               float scale) {
  ASSIGN_OR_RETURN(const TensorView view, New(dtype, shape));
  RETURN_IF_ERROR(cuda::ToStatus(cudaDeviceSynchronize(), "work before random numbers"));
  const int error = FillRandom(view.data, buffers_.back()->bytes(),
                               dtype == DType::kF32 ? RandomKind::kF32 : RandomKind::kBf16, scale,
                               seed_++, nullptr);
  RETURN_IF_ERROR(cuda::ToStatus(static_cast<cudaError_t>(error), "random numbers"));
  RETURN_IF_ERROR(cuda::ToStatus(cudaDeviceSynchronize(), "random numbers"));
  return view;
}

absl::StatusOr<TensorView> CudaTensors::Unset(DType dtype, std::vector<int64_t> shape) {
  ASSIGN_OR_RETURN(const TensorView view, New(dtype, shape));
  RETURN_IF_ERROR(cuda::ToStatus(cudaDeviceSynchronize(), "work before"));
  RETURN_IF_ERROR(cuda::ToStatus(
      cudaMemset(view.data, 0xFF, static_cast<size_t>(buffers_.back()->bytes())), "NaN"));
  RETURN_IF_ERROR(cuda::ToStatus(cudaDeviceSynchronize(), "NaN"));
  return view;
}

namespace {

// Dimensions that an emulated device can take; what makes the model what it is stays.
ModelConfig Tiny(ModelConfig c) {
  c.vocab_size = 256;
  c.hidden_size = 128;
  c.intermediate_size = 192;
  c.moe_intermediate_size = 64;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 2;
  c.kv_lora_rank = 64;
  c.qk_nope_head_dim = 64;
  c.v_head_dim = 64;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 2;
  c.first_k_dense_replace = 1;
  if (c.n_group > 1) {
    c.n_group = 4;
    c.topk_group = 2;
  }
  if (c.q_lora_rank > 0) c.q_lora_rank = 64;
  return c;
}

}  // namespace

ModelConfig V2LiteConfig(bool tiny) { return tiny ? Tiny(V2LiteShape()) : V2LiteShape(); }

ModelConfig V3Config(bool tiny) { return tiny ? Tiny(V3Shape()) : V3Shape(); }

}  // namespace jevons
