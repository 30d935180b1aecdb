#include <cmath>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "cpu/available_memory.h"
#include "cpu/cpu_backend.h"
#include "cpu/reference_mla.h"
#include "cpu/reference_ops.h"
#include "cpu/reference_sample.h"
#include "ops/validate.h"

namespace jevons {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kScaleBlock = 128;

class HostBuffer : public Buffer {
 public:
  HostBuffer(void* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  ~HostBuffer() override { std::free(data_); }
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  void* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  void* data_;
  int64_t bytes_;
};

// Appends the dequantised rows of one part; false where an f8 value is NaN.
bool AppendPart(const WeightPart& part, std::vector<float>& values) {
  const int64_t k = part.data.dim(1);
  for (int64_t i = 0; i < part.data.dim(0); ++i) {
    for (int64_t j = 0; j < k; ++j) {
      float value = reference::ReadElement(part.data, i * part.data.stride[0] + j);
      if (part.data.dtype == DType::kF8E4M3) {
        if (std::isnan(value)) return false;
        value *= reference::ReadElement(part.scale,
                                        i / kScaleBlock * part.scale.stride[0] + j / kScaleBlock);
      }
      values.push_back(value);
    }
  }
  return true;
}

// Runs the twin of an op after its checks.
template <typename Args, typename Fn>
absl::Status Checked(const Args& args, Fn fn) {
  RETURN_IF_ERROR(Validate(args));
  fn(args);
  return absl::OkStatus();
}

// Thread-compatible.
class ReferenceBackend : public Backend {
 public:
  std::string Description() const override { return "reference (plain loops, fp64 sums)"; }

  int64_t AvailableBytes() const override { return AvailableMemory(); }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override {
    if (bytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("Allocate: bytes must be at least 0, got ", bytes));
    }
    if (bytes > INT64_MAX - kAlignment) {
      return absl::ResourceExhaustedError(
          absl::StrCat("Allocate: no memory for ", bytes, " bytes"));
    }
    const int64_t rounded =
        std::max(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    void* data = std::aligned_alloc(kAlignment, static_cast<size_t>(rounded));
    if (data == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("Allocate: no memory for ", bytes, " bytes"));
    }
    std::memset(data, 0, static_cast<size_t>(rounded));
    return std::make_unique<HostBuffer>(data, bytes);
  }

  absl::StatusOr<DeviceTensor> Upload(const TensorView& host) override {
    if (!host.contiguous()) {
      return absl::InvalidArgumentError(
          absl::StrCat("Upload: host must be contiguous, got ", host.ToString()));
    }
    const int64_t bytes = host.num_elements() * DTypeBytes(host.dtype);
    DeviceTensor out;
    ASSIGN_OR_RETURN(out.buffer, Allocate(bytes));
    if (bytes > 0) std::memcpy(out.buffer->data(), host.data, static_cast<size_t>(bytes));
    out.view = host;
    out.view.data = out.buffer->data();
    return out;
  }

  absl::Status Write(const TensorView& device, const TensorView& host) override {
    return CopyTensor(device, host);
  }
  absl::Status Read(const TensorView& host, const TensorView& device) override {
    return CopyTensor(host, device);
  }

  absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) override {
    RETURN_IF_ERROR(Validate(spec));
    const int64_t k = spec.groups[0][0].data.dim(1);
    std::vector<float> values;
    for (size_t g = 0; g < spec.groups.size(); ++g) {
      for (const WeightPart& part : spec.groups[g]) {
        if (AppendPart(part, values)) continue;
        return absl::InvalidArgumentError(
            absl::StrCat("PackWeight: group ", g, " must hold numbers, got an f8 NaN"));
      }
    }
    const int32_t num_groups = static_cast<int32_t>(spec.groups.size());
    const int64_t n = static_cast<int64_t>(values.size()) / k / num_groups;
    return std::make_unique<reference::PlainWeight>(num_groups, n, k, spec.use, spec.input,
                                                    std::move(values));
  }

  absl::Status Embed(const EmbedArgs& args) override { return Checked(args, reference::Embed); }
  absl::Status RmsNorm(const RmsNormArgs& args) override {
    return Checked(args, reference::RmsNorm);
  }
  absl::Status SiluMul(const SiluMulArgs& args) override {
    return Checked(args, reference::SiluMul);
  }
  absl::Status Rope(const RopeArgs& args) override { return Checked(args, reference::Rope); }
  absl::Status GatherRows(const GatherRowsArgs& args) override {
    return Checked(args, reference::GatherRows);
  }
  absl::Status Linear(const LinearArgs& args) override { return Checked(args, reference::Linear); }
  absl::Status HeadLinear(const HeadLinearArgs& args) override {
    return Checked(args, reference::HeadLinear);
  }
  absl::Status GroupedGemm(const GroupedGemmArgs& args) override {
    return Checked(args, reference::GroupedGemm);
  }
  absl::Status MlaStoreKv(const MlaStoreKvArgs& args) override {
    return Checked(args, reference::MlaStoreKv);
  }
  absl::Status MlaAttention(const MlaAttentionArgs& args) override {
    return Checked(args, reference::MlaAttention);
  }
  absl::Status RouteTopK(const RouteTopKArgs& args) override {
    return Checked(args, reference::RouteTopK);
  }
  absl::Status ExpertDispatch(const ExpertDispatchArgs& args) override {
    return Checked(args, reference::ExpertDispatch);
  }
  absl::Status ExpertCombine(const ExpertCombineArgs& args) override {
    return Checked(args, reference::ExpertCombine);
  }
  absl::Status RankDispatch(const RankDispatchArgs& args) override {
    return Checked(args, reference::RankDispatch);
  }
  absl::Status ReturnRows(const ReturnRowsArgs& args) override {
    return Checked(args, reference::ReturnRows);
  }
  absl::Status PackRows(const PackRowsArgs& args) override {
    return Checked(args, reference::PackRows);
  }
  absl::Status UnpackRows(const UnpackRowsArgs& args) override {
    return Checked(args, reference::UnpackRows);
  }
  absl::Status SampleTokens(const SampleTokensArgs& args) override {
    return Checked(args, reference::SampleTokens);
  }
};

}  // namespace

std::unique_ptr<Backend> CreateReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace jevons
