// What a device must be able to do for a model. The model speaks to this and never to a device.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"
#include "base/status.h"
#include "ops/elementwise.h"
#include "ops/exchange.h"
#include "ops/linear.h"
#include "ops/mla.h"
#include "ops/moe.h"
#include "ops/sample.h"
#include "ops/weight.h"

namespace jevons {

// Device memory. Freed with the object.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void* data() = 0;
  virtual int64_t bytes() const = 0;
};

struct DeviceTensor {
  std::unique_ptr<Buffer> buffer;
  TensorView view;
};

// Memory of the host that a device copies to on its own, one copy after the other. Freed with the
// object, when the last copy is done. Used by the backend's thread.
class Readback {
 public:
  virtual ~Readback() = default;
  // Queues a copy of a contiguous device tensor behind the ops before it, and does not wait.
  // INVALID_ARGUMENT where it is larger than the memory.
  virtual absl::Status Start(const TensorView& device) = 0;
  // Waits for the last copy that was started, with the errors of all ops before it, but for nothing
  // queued since. The bytes stay until the next Start.
  virtual absl::StatusOr<const void*> Wait() = 0;
  // Whether Wait would wait no more, with its errors.
  virtual absl::StatusOr<bool> Done() { return true; }
};

// What a backend wants to be given. An activation may always be f32 too; the input of a matrix
// product is `activation`.
struct BackendTraits {
  DType activation = DType::kF32;
  DType kv_cache = DType::kF32;        // or FP8 entries, which every backend has
  bool host_memory = true;             // buffers can be read and written by the host
  bool samples = false;                // logits stay on the device, SampleTokens is fast
  bool groups_shared_experts = false;  // shared experts are groups behind the routed ones
  bool fuses_gated_up = false;         // GatedUp needs no workspace
  // Steps are recorded for a number of tokens and replayed: the model pads them to one of few.
  bool records_steps = false;
};

// Owned by one thread: the engine thread, after the loading thread has handed it over. Every op
// validates its arguments: INVALID_ARGUMENT names op, argument, what was wanted and what was given,
// and nothing is written.
class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu (avx512, 2 threads)"
  virtual std::string Description() const = 0;

  virtual BackendTraits traits() const { return {}; }

  // To be called by a thread before it uses the backend, but for the one that has made it: its device
  // is the thread's from now on.
  virtual absl::Status BindThread() { return absl::OkStatus(); }
  // Waits for all ops, with their errors.
  virtual absl::Status Wait() { return absl::OkStatus(); }
  // Whether Wait would wait no more, with its errors.
  virtual absl::StatusOr<bool> Done() { return true; }

  // Memory that Allocate could still give, about.
  virtual int64_t AvailableBytes() const = 0;
  // Zeroed memory, aligned to 64 bytes. RESOURCE_EXHAUSTED with the size where there is none.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) = 0;
  // Copies a contiguous host tensor to the device.
  virtual absl::StatusOr<DeviceTensor> Upload(const TensorView& host) = 0;
  // Copies a contiguous host tensor over `device` when the ops before it are done; `host` may change
  // after the call.
  virtual absl::Status Write(const TensorView& device, const TensorView& host) = 0;
  // Waits for all ops, with their errors, and copies to a contiguous host tensor.
  virtual absl::Status Read(const TensorView& host, const TensorView& device) = 0;
  // By default its copies are Reads, done when they start. RESOURCE_EXHAUSTED where there is no
  // memory.
  virtual absl::StatusOr<std::unique_ptr<Readback>> NewReadback(int64_t bytes);
  // Runs `ops`, which calls ops of this backend alone. Calls with the same key must mean the same
  // ops on the same tensors: a backend may record the first and replay it instead of the others.
  virtual absl::Status RunStep(int64_t key, absl::FunctionRef<absl::Status()> ops) { return ops(); }
  // Drops what RunStep has recorded: before anything goes that the ops have named.
  virtual void ForgetSteps() {}
  // Where ops are queued, for who exchanges with other ranks among them: a cudaStream_t; null where
  // an op is done when its call returns.
  virtual void* queue() const { return nullptr; }

  // INVALID_ARGUMENT for shapes that do not fit together or a NaN among f8 values.
  virtual absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) = 0;
  // Takes what memory products with the weight need beside their arguments, for up to so many rows of x:
  // then no step takes any. By default they need none.
  virtual absl::Status PrepareProducts(const Weight& weight, int64_t most_rows) {
    return absl::OkStatus();
  }
  // A weight whose group g is a copy of groups[g], of weights that were packed on this device.
  // INVALID_ARGUMENT unless all have the same n, k, use and stored type; UNIMPLEMENTED where a
  // backend does not copy. May be called while ops read the weights.
  virtual absl::StatusOr<std::unique_ptr<Weight>> JoinGroups(std::span<const PackedGroup> groups) {
    return absl::UnimplementedError("JoinGroups: not on this backend");
  }
  // Copies the values of `from` over those of `to` when the ops before it are done: where recorded
  // steps name `to`. A backend of the same device may have packed `from`, and has ended its ops.
  // INVALID_ARGUMENT where they are not packed alike; UNIMPLEMENTED by default.
  virtual absl::Status CopyWeight(const Weight& from, Weight& to);

  virtual absl::Status Embed(const EmbedArgs& args) = 0;
  virtual absl::Status RmsNorm(const RmsNormArgs& args) = 0;
  virtual absl::Status SiluMul(const SiluMulArgs& args) = 0;
  virtual absl::Status Rope(const RopeArgs& args) = 0;
  virtual absl::Status GatherRows(const GatherRowsArgs& args) = 0;
  virtual absl::Status Linear(const LinearArgs& args) = 0;
  // By default one after the other; a backend may do both at once.
  virtual absl::Status LinearAndNorm(const LinearAndNormArgs& args);
  virtual absl::Status HeadLinear(const HeadLinearArgs& args) = 0;
  virtual absl::Status GroupedGemm(const GroupedGemmArgs& args) = 0;
  // By default the product goes to the workspace and then through SiluMul.
  virtual absl::Status GatedUp(const GatedUpArgs& args);
  virtual absl::Status MlaStoreKv(const MlaStoreKvArgs& args) = 0;
  // By default its three steps one after the other; a backend may do them at once.
  virtual absl::Status MlaPrepare(const MlaPrepareArgs& args);
  virtual absl::Status MlaAttention(const MlaAttentionArgs& args) = 0;
  // The same of its two.
  virtual absl::Status MlaValues(const MlaValuesArgs& args);
  virtual absl::Status RouteTopK(const RouteTopKArgs& args) = 0;
  virtual absl::Status ExpertDispatch(const ExpertDispatchArgs& args) = 0;
  // RouteTopK, then ExpertDispatch of what it chose; a backend may do both at once.
  virtual absl::Status RouteAndDispatch(const RouteTopKArgs& route, const DispatchPlan& plan);
  virtual absl::Status ExpertCombine(const ExpertCombineArgs& args) = 0;
  // The ops that each of these consists of, one after the other; a backend may do them at once.
  virtual absl::Status NormAndRoute(const NormAndRouteArgs& args);
  virtual absl::Status LinearAndRoute(const LinearAndRouteArgs& args);
  virtual absl::Status CombineAndNorm(const CombineAndNormArgs& args);
  // `down`, whose output is end.combine.expert_out, then CombineAndNorm.
  virtual absl::Status FinishExperts(const GroupedGemmArgs& down, const CombineAndNormArgs& end);
  // UNIMPLEMENTED by default: a backend that serves no group of ranks.
  virtual absl::Status RankDispatch(const RankDispatchArgs& args);
  virtual absl::Status ReturnRows(const ReturnRowsArgs& args);
  virtual absl::Status PackRows(const PackRowsArgs& args);
  virtual absl::Status UnpackRows(const UnpackRowsArgs& args);
  virtual absl::Status SampleTokens(const SampleTokensArgs& args) = 0;
};

}  // namespace jevons
