#include "cpu/fast_backend.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "cpu/attention.h"
#include "cpu/cpu_target.h"
#include "cpu/cpu_weight.h"
#include "cpu/huge_buffer.h"
#include "cpu/reference_sample.h"
#include "cpu/rows.h"
#include "ops/validate.h"

namespace jevons {
namespace {

constexpr int32_t kMaxCpuThreads = 1024;

class HostBuffer : public Buffer {
 public:
  explicit HostBuffer(HugeBuffer memory) : memory_(std::move(memory)) {}
  void* data() override { return memory_.data(); }
  int64_t bytes() const override { return memory_.bytes(); }

 private:
  HugeBuffer memory_;
};

}  // namespace

CpuBackend::CpuBackend(int num_threads) : pool_(num_threads) {}

std::string CpuBackend::Description() const {
  return absl::StrCat("cpu (", ToAbsl(CpuTargetName()), ", ", pool_.num_threads(),
                      pool_.num_threads() == 1 ? " thread)" : " threads)");
}

absl::StatusOr<std::unique_ptr<Buffer>> CpuBackend::Allocate(int64_t bytes) {
  ASSIGN_OR_RETURN(HugeBuffer memory, HugeBuffer::Allocate(bytes));
  return std::make_unique<HostBuffer>(std::move(memory));
}

absl::StatusOr<DeviceTensor> CpuBackend::Upload(const TensorView& host) {
  if (!host.contiguous()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Upload: tensor must be contiguous, got strides of ", host.ToString()));
  }
  const int64_t bytes = host.num_elements() * DTypeBytes(host.dtype);
  DeviceTensor out;
  ASSIGN_OR_RETURN(out.buffer, Allocate(bytes));
  if (bytes > 0) std::memcpy(out.buffer->data(), host.data, bytes);
  out.view = host;
  out.view.data = out.buffer->data();
  return out;
}

absl::Status CpuBackend::Write(const TensorView& device, const TensorView& host) {
  return CopyTensor(device, host);
}

absl::Status CpuBackend::Read(const TensorView& host, const TensorView& device) {
  return CopyTensor(host, device);
}

absl::StatusOr<std::unique_ptr<Weight>> CpuBackend::PackWeight(const WeightSpec& spec) {
  RETURN_IF_ERROR(Validate(spec));
  return PackCpuWeight(spec, pool_);
}

absl::StatusOr<std::unique_ptr<Weight>> CpuBackend::JoinGroups(
    std::span<const PackedGroup> groups) {
  RETURN_IF_ERROR(Validate(groups));
  return JoinCpuGroups(groups, pool_);
}

absl::Status CpuBackend::Linear(const LinearArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  return gemm_.Linear(args, pool_);
}

absl::Status CpuBackend::HeadLinear(const HeadLinearArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  return gemm_.HeadLinear(args, pool_);
}

absl::Status CpuBackend::GroupedGemm(const GroupedGemmArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  return gemm_.GroupedGemm(args, pool_);
}

absl::Status CpuBackend::Embed(const EmbedArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::Embed(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::RmsNorm(const RmsNormArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::RmsNorm(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::SiluMul(const SiluMulArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::SiluMul(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::Rope(const RopeArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::Rope(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::GatherRows(const GatherRowsArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::GatherRows(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::MlaStoreKv(const MlaStoreKvArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::MlaStoreKv(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::MlaAttention(const MlaAttentionArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::MlaAttention(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::RouteTopK(const RouteTopKArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::RouteTopK(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::ExpertDispatch(const ExpertDispatchArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::ExpertDispatch(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::ExpertCombine(const ExpertCombineArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::ExpertCombine(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::RankDispatch(const RankDispatchArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::RankDispatch(args);
  return absl::OkStatus();
}

absl::Status CpuBackend::ReturnRows(const ReturnRowsArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::ReturnRows(args);
  return absl::OkStatus();
}

absl::Status CpuBackend::PackRows(const PackRowsArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::PackRows(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::UnpackRows(const UnpackRowsArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  fast::UnpackRows(args, pool_);
  return absl::OkStatus();
}

absl::Status CpuBackend::SampleTokens(const SampleTokensArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  reference::SampleTokens(args);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options) {
  if (options.num_threads < 0 || options.num_threads > kMaxCpuThreads) {
    return absl::InvalidArgumentError(absl::StrCat("num_threads must be in [0, ", kMaxCpuThreads,
                                                   "], got ", options.num_threads));
  }
  RETURN_IF_ERROR(UseCpuTarget(options.target));
  return std::make_unique<CpuBackend>(options.num_threads > 0 ? options.num_threads : UsableCpus());
}

}  // namespace jevons
