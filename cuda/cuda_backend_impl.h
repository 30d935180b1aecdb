// The CUDA backend: one device, one stream, kernels from this folder.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "cuda/cublaslt.h"
#include "cuda/cuda_backend.h"
#include "cuda/cuda_weight.h"
#include "cuda/device_facts.h"
#include "cuda/device_memory.h"
#include "cuda/graph_cache.h"
#include "cuda/mla.h"
#include "cuda/pack.h"
#include "cuda/router.h"
#include "ops/validate.h"

namespace jevons::cuda {

BackendTraits CudaTraits(bool records_steps);

// Used by one thread at a time. Ops queue their kernels on the stream and return; errors of a kernel
// come back from the next call that waits. Index arrays lie on the device, so what is wrong in them
// is not refused but ends in NaN or in nothing written: see the kernels' contracts.
class CudaBackend : public Backend {
 public:
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(const CudaBackendOptions& options);
  ~CudaBackend() override;

  std::string Description() const override { return description_; }
  BackendTraits traits() const override { return CudaTraits(options_.records_steps); }
  absl::Status BindThread() override;
  absl::Status Wait() override;
  absl::StatusOr<bool> Done() override;
  int64_t AvailableBytes() const override;

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override;
  absl::StatusOr<DeviceTensor> Upload(const TensorView& host) override;
  absl::Status Write(const TensorView& device, const TensorView& host) override;
  absl::Status Read(const TensorView& host, const TensorView& device) override;
  absl::StatusOr<std::unique_ptr<Readback>> NewReadback(int64_t bytes) override;
  absl::Status RunStep(int64_t key, absl::FunctionRef<absl::Status()> ops) override;
  void ForgetSteps() override { graphs_.Clear(); }
  void* queue() const override { return stream_; }
  absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) override;
  absl::Status PrepareProducts(const Weight& weight, int64_t most_rows) override;
  absl::Status CopyWeight(const Weight& from, Weight& to) override;

  absl::Status Embed(const EmbedArgs& args) override;
  absl::Status RmsNorm(const RmsNormArgs& args) override;
  absl::Status SiluMul(const SiluMulArgs& args) override;
  absl::Status Rope(const RopeArgs& args) override;
  absl::Status GatherRows(const GatherRowsArgs& args) override;
  absl::Status Linear(const LinearArgs& args) override;
  absl::Status LinearAndNorm(const LinearAndNormArgs& args) override;
  absl::Status HeadLinear(const HeadLinearArgs& args) override;
  absl::Status GroupedGemm(const GroupedGemmArgs& args) override;
  absl::Status GatedUp(const GatedUpArgs& args) override;
  absl::Status MlaStoreKv(const MlaStoreKvArgs& args) override;
  absl::Status MlaPrepare(const MlaPrepareArgs& args) override;
  absl::Status MlaAttention(const MlaAttentionArgs& args) override;
  absl::Status MlaValues(const MlaValuesArgs& args) override;
  absl::Status RouteTopK(const RouteTopKArgs& args) override;
  absl::Status ExpertDispatch(const ExpertDispatchArgs& args) override;
  absl::Status RouteAndDispatch(const RouteTopKArgs& route, const DispatchPlan& plan) override;
  absl::Status ExpertCombine(const ExpertCombineArgs& args) override;
  absl::Status NormAndRoute(const NormAndRouteArgs& args) override;
  absl::Status LinearAndRoute(const LinearAndRouteArgs& args) override;
  absl::Status CombineAndNorm(const CombineAndNormArgs& args) override;
  absl::Status FinishExperts(const GroupedGemmArgs& down, const CombineAndNormArgs& end) override;
  absl::Status RankDispatch(const RankDispatchArgs& args) override;
  absl::Status ReturnRows(const ReturnRowsArgs& args) override;
  absl::Status PackRows(const PackRowsArgs& args) override;
  absl::Status UnpackRows(const UnpackRowsArgs& args) override;
  absl::Status SampleTokens(const SampleTokensArgs& args) override;

 private:
  CudaBackend(const CudaBackendOptions& options, const DeviceFacts& facts, std::string description,
              cudaStream_t stream)
      : options_(options), facts_(facts), description_(std::move(description)), stream_(stream) {}

  // Queues the product, whose rows are as it wants them.
  absl::Status Multiply(const GemmParams& params, const TensorView& out);
  // Queues the product where it is for cuBLASLt; false: it is for our kernel.
  absl::StatusOr<bool> MultiplyByLibrary(const GemmParams& params);

  // Scratch of at least `bytes`, kept between calls. FAILED_PRECONDITION where it would have to grow
  // while a step is recorded.
  absl::Status Reserve(std::unique_ptr<DeviceBuffer>& scratch, int64_t bytes);
  // As many as the router's kernel has: those of all ops share them.
  absl::StatusOr<int32_t*> BlockCounters();

  // For the launches of one op. The first kernel of a step begins when all before has ended, so what
  // is written between steps is there; from it on a kernel may begin before the one in front ends.
  DeviceFacts LaunchFacts();

  absl::StatusOr<MlaAttentionParams> AttentionParams(const MlaAttentionArgs& args);
  // With its scratch.
  absl::StatusOr<RouterParams> NormAndRouteParams(const NormAndRouteArgs& args,
                                                  const CudaWeight& router);

  // Each queues its kernels; the arguments are valid. NormThenRoute gives the bits of NormAndRoute
  // for a step that one kernel does not take.
  absl::Status ChooseAndDispatch(const RouteTopKParams& params, const RouteTopKArgs& route,
                                 const DispatchPlan& plan);
  absl::Status NormThenRoute(const RouterParams& params, const CudaWeight& weight,
                             const NormAndRouteArgs& args);

  // Where the weight wants it, queues what rounds the rows of x, for `params` to read instead. Rows from
  // row_limit[0] on may be left out; null: none.
  absl::Status RoundInput(const Weight& weight, const int32_t* row_limit, GemmParams& params);

  // Copies the rows of one part and packs them behind `params.row_offset`.
  absl::Status PackPart(const WeightPart& part, PackParams params);

  const CudaBackendOptions options_;
  const DeviceFacts facts_;
  const std::string description_;
  const cudaStream_t stream_;
  // A step's writes and those of the step before it find a slot each, so that neither waits for the
  // device: up to six a step.
  static constexpr int kWriteSlots = 12;
  static constexpr int kUploadSlots = 4;

  StagingRing writes_{kWriteSlots};
  StagingRing uploads_{kUploadSlots};
  std::unique_ptr<DeviceBuffer> attention_scratch_;
  // What blocks of a kernel count of each other; 0 between launches.
  std::unique_ptr<DeviceBuffer> block_counters_;
  std::unique_ptr<DeviceBuffer> router_scratch_;
  std::unique_ptr<DeviceBuffer> rounded_rows_;
  std::unique_ptr<DeviceBuffer> raw_rows_;
  std::unique_ptr<CublasLt> cublaslt_;  // null where options_.cublaslt_rows is 0
  GraphCache graphs_;
  bool in_step_ = false;  // whose kernels may begin early
  bool follows_kernel_of_step_ = false;
};

}  // namespace jevons::cuda
