// Passes everything on, and writes down when work is queued and when it is waited for.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "ops/backend.h"

namespace jevons {

// Outlives the backend. Written by the backend's thread alone.
struct BackendLog {
  // L: the layers of a step. S: its samples. Q: their way to the host is queued. W: it is waited for.
  std::string calls;
  int fail_wait = 0;  // the n-th wait from here fails as a device does; 0: none
};

// Samples where `inner` does not say so itself: for a loop, the CPU is then a device that is done at
// once. Used by one thread at a time.
class LoggedBackend : public Backend {
 public:
  LoggedBackend(std::unique_ptr<Backend> inner, BackendLog* log)
      : inner_(std::move(inner)), log_(log) {}

  std::string Description() const override { return inner_->Description(); }
  BackendTraits traits() const override {
    BackendTraits traits = inner_->traits();
    traits.samples = true;
    return traits;
  }
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
  absl::StatusOr<std::unique_ptr<Readback>> NewReadback(int64_t bytes) override {
    ASSIGN_OR_RETURN(std::unique_ptr<Readback> inner, inner_->NewReadback(bytes));
    return std::make_unique<LoggedReadback>(std::move(inner), log_);
  }
  absl::Status RunStep(int64_t key, absl::FunctionRef<absl::Status()> ops) override {
    // The layers' keys are numbers of rows.
    log_->calls += key < (int64_t{1} << 32) ? 'L' : 'S';
    return inner_->RunStep(key, ops);
  }
  absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) override {
    return inner_->PackWeight(spec);
  }
  absl::Status PrepareProducts(const Weight& weight, int64_t most_rows) override {
    return inner_->PrepareProducts(weight, most_rows);
  }

  absl::Status Embed(const EmbedArgs& args) override { return inner_->Embed(args); }
  absl::Status RmsNorm(const RmsNormArgs& args) override { return inner_->RmsNorm(args); }
  absl::Status SiluMul(const SiluMulArgs& args) override { return inner_->SiluMul(args); }
  absl::Status Rope(const RopeArgs& args) override { return inner_->Rope(args); }
  absl::Status GatherRows(const GatherRowsArgs& args) override { return inner_->GatherRows(args); }
  absl::Status Linear(const LinearArgs& args) override { return inner_->Linear(args); }
  absl::Status HeadLinear(const HeadLinearArgs& args) override { return inner_->HeadLinear(args); }
  absl::Status GroupedGemm(const GroupedGemmArgs& args) override {
    return inner_->GroupedGemm(args);
  }
  absl::Status GatedUp(const GatedUpArgs& args) override { return inner_->GatedUp(args); }
  absl::Status LinearAndNorm(const LinearAndNormArgs& args) override {
    return inner_->LinearAndNorm(args);
  }
  absl::Status MlaStoreKv(const MlaStoreKvArgs& args) override { return inner_->MlaStoreKv(args); }
  absl::Status MlaPrepare(const MlaPrepareArgs& args) override { return inner_->MlaPrepare(args); }
  absl::Status MlaAttention(const MlaAttentionArgs& args) override {
    return inner_->MlaAttention(args);
  }
  absl::Status MlaValues(const MlaValuesArgs& args) override { return inner_->MlaValues(args); }
  absl::Status RouteTopK(const RouteTopKArgs& args) override { return inner_->RouteTopK(args); }
  absl::Status ExpertDispatch(const ExpertDispatchArgs& args) override {
    return inner_->ExpertDispatch(args);
  }
  absl::Status RouteAndDispatch(const RouteTopKArgs& route, const DispatchPlan& plan) override {
    return inner_->RouteAndDispatch(route, plan);
  }
  absl::Status ExpertCombine(const ExpertCombineArgs& args) override {
    return inner_->ExpertCombine(args);
  }
  absl::Status NormAndRoute(const NormAndRouteArgs& args) override {
    return inner_->NormAndRoute(args);
  }
  absl::Status LinearAndRoute(const LinearAndRouteArgs& args) override {
    return inner_->LinearAndRoute(args);
  }
  absl::Status CombineAndNorm(const CombineAndNormArgs& args) override {
    return inner_->CombineAndNorm(args);
  }
  absl::Status FinishExperts(const GroupedGemmArgs& down, const CombineAndNormArgs& end) override {
    return inner_->FinishExperts(down, end);
  }
  absl::Status SampleTokens(const SampleTokensArgs& args) override {
    return inner_->SampleTokens(args);
  }

 private:
  class LoggedReadback : public Readback {
   public:
    LoggedReadback(std::unique_ptr<Readback> inner, BackendLog* log)
        : inner_(std::move(inner)), log_(log) {}
    absl::Status Start(const TensorView& device) override {
      log_->calls += 'Q';
      return inner_->Start(device);
    }
    absl::StatusOr<const void*> Wait() override {
      log_->calls += 'W';
      if (log_->fail_wait > 0 && --log_->fail_wait == 0) return absl::InternalError("planned");
      return inner_->Wait();
    }

   private:
    std::unique_ptr<Readback> inner_;
    BackendLog* const log_;
  };

  std::unique_ptr<Backend> inner_;
  BackendLog* const log_;
};

}  // namespace jevons
