// A backend that counts what the ops of a step must read and compute, and passes them on.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "ops/backend.h"
#include "ops/cost.h"

namespace jevons {

struct OpTotals {
  double weight_bytes =
      0;  // each weight of each matrix product once a call, of experts those with rows
  double cache_bytes = 0;  // keys and values that attention reads, once a sequence
  double flops = 0;        // two a multiply-add: matrix products, scores and weighted values
};

// Used by one thread at a time.
class CountingBackend : public Backend {
 public:
  explicit CountingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  OpTotals totals() const { return totals_; }
  void Reset() { totals_ = {}; }

  std::string Description() const override { return inner_->Description(); }
  int64_t AvailableBytes() const override { return inner_->AvailableBytes(); }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) override {
    return inner_->Allocate(bytes);
  }
  absl::StatusOr<DeviceTensor> Upload(const TensorView& host) override {
    return inner_->Upload(host);
  }
  absl::Status Write(const TensorView& device, const TensorView& host) override {
    return inner_->Write(device, host);
  }
  absl::Status Read(const TensorView& host, const TensorView& device) override {
    return inner_->Read(host, device);
  }
  absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) override {
    return inner_->PackWeight(spec);
  }
  absl::Status Embed(const EmbedArgs& args) override { return inner_->Embed(args); }
  absl::Status RmsNorm(const RmsNormArgs& args) override { return inner_->RmsNorm(args); }
  absl::Status SiluMul(const SiluMulArgs& args) override { return inner_->SiluMul(args); }
  absl::Status Rope(const RopeArgs& args) override { return inner_->Rope(args); }
  absl::Status GatherRows(const GatherRowsArgs& args) override { return inner_->GatherRows(args); }
  absl::Status Linear(const LinearArgs& args) override {
    Count(*args.weight, args.weight->num_groups(), Cost(args));
    return inner_->Linear(args);
  }
  absl::Status HeadLinear(const HeadLinearArgs& args) override {
    Count(*args.weight, args.weight->num_groups(), Cost(args));
    return inner_->HeadLinear(args);
  }
  absl::Status GroupedGemm(const GroupedGemmArgs& args) override {
    const int32_t* cu_rows = args.cu_rows.ptr<int32_t>();
    int32_t with_rows = 0;
    for (int32_t g = 0; g < args.weight->num_groups(); ++g) {
      with_rows += cu_rows[g + 1] > cu_rows[g];
    }
    Count(*args.weight, with_rows, Cost(args));
    return inner_->GroupedGemm(args);
  }
  absl::Status MlaStoreKv(const MlaStoreKvArgs& args) override { return inner_->MlaStoreKv(args); }
  absl::Status MlaPrepare(const MlaPrepareArgs& args) override {
    Count(*args.uk, args.uk->num_groups(), Cost(args.product()));
    return inner_->MlaPrepare(args);
  }
  absl::Status MlaAttention(const MlaAttentionArgs& args) override {
    const int64_t entry_bytes = args.cache.dim(2) * DTypeBytes(args.cache.dtype);
    for (int64_t s = 0; s < args.context_lens.dim(0); ++s) {
      totals_.cache_bytes += static_cast<double>(args.context_lens.ptr<int32_t>()[s] * entry_bytes);
    }
    totals_.flops += static_cast<double>(Cost(args).flops);
    return inner_->MlaAttention(args);
  }
  absl::Status RouteTopK(const RouteTopKArgs& args) override { return inner_->RouteTopK(args); }
  absl::Status ExpertDispatch(const ExpertDispatchArgs& args) override {
    return inner_->ExpertDispatch(args);
  }
  absl::Status ExpertCombine(const ExpertCombineArgs& args) override {
    return inner_->ExpertCombine(args);
  }
  absl::Status SampleTokens(const SampleTokensArgs& args) override {
    return inner_->SampleTokens(args);
  }

 private:
  // Of the bytes only the weights count: rows go from op to op through the caches.
  void Count(const Weight& weight, int64_t groups, const OpCost& cost) {
    totals_.weight_bytes +=
        static_cast<double>(weight.bytes()) * static_cast<double>(groups) / weight.num_groups();
    totals_.flops += static_cast<double>(cost.flops);
  }

  std::unique_ptr<Backend> inner_;
  OpTotals totals_;
};

}  // namespace jevons
