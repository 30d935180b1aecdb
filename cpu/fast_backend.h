// The CPU backend that serves: packed weights, vector code for the machine at hand, a pool of
// threads.
#pragma once

#include <memory>
#include <string>

#include "cpu/available_memory.h"
#include "cpu/cpu_backend.h"
#include "cpu/gemm.h"
#include "cpu/thread_pool.h"
#include "ops/backend.h"

namespace jevons {

// Used by one thread at a time.
class CpuBackend : public Backend {
 public:
  // num_threads >= 1. The instruction set is the one that is chosen for the process.
  explicit CpuBackend(int num_threads);

  std::string Description() const override;

  int64_t AvailableBytes() const override { return AvailableMemory(); }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override;
  absl::StatusOr<DeviceTensor> Upload(const TensorView& host) override;
  absl::Status Write(const TensorView& device, const TensorView& host) override;
  absl::Status Read(const TensorView& host, const TensorView& device) override;
  absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) override;
  absl::StatusOr<std::unique_ptr<Weight>> JoinGroups(std::span<const PackedGroup> groups) override;

  absl::Status Embed(const EmbedArgs& args) override;
  absl::Status RmsNorm(const RmsNormArgs& args) override;
  absl::Status SiluMul(const SiluMulArgs& args) override;
  absl::Status Rope(const RopeArgs& args) override;
  absl::Status GatherRows(const GatherRowsArgs& args) override;
  absl::Status Linear(const LinearArgs& args) override;
  absl::Status HeadLinear(const HeadLinearArgs& args) override;
  absl::Status GroupedGemm(const GroupedGemmArgs& args) override;
  absl::Status MlaStoreKv(const MlaStoreKvArgs& args) override;
  absl::Status MlaAttention(const MlaAttentionArgs& args) override;
  absl::Status RouteTopK(const RouteTopKArgs& args) override;
  absl::Status ExpertDispatch(const ExpertDispatchArgs& args) override;
  absl::Status ExpertCombine(const ExpertCombineArgs& args) override;
  absl::Status RankDispatch(const RankDispatchArgs& args) override;
  absl::Status ReturnRows(const ReturnRowsArgs& args) override;
  absl::Status PackRows(const PackRowsArgs& args) override;
  absl::Status UnpackRows(const UnpackRowsArgs& args) override;
  absl::Status SampleTokens(const SampleTokensArgs& args) override;

 private:
  ThreadPool pool_;
  fast::Gemm gemm_;
};

}  // namespace jevons
