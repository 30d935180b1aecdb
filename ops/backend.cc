#include "ops/backend.h"

#include <vector>

#include "ops/validate.h"

namespace jevons {
namespace {

class ReadAtOnce : public Readback {
 public:
  ReadAtOnce(Backend& backend, int64_t bytes)
      : backend_(backend), bytes_(static_cast<size_t>(bytes)) {}

  absl::Status Start(const TensorView& device) override {
    RETURN_IF_ERROR(ValidateReadback(device, static_cast<int64_t>(bytes_.size())));
    TensorView host = device;
    host.data = bytes_.data();
    return backend_.Read(host, device);
  }
  absl::StatusOr<const void*> Wait() override { return bytes_.data(); }

 private:
  Backend& backend_;
  std::vector<char> bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Readback>> Backend::NewReadback(int64_t bytes) {
  return std::make_unique<ReadAtOnce>(*this, bytes);
}

absl::Status Backend::GatedUp(const GatedUpArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  if (!args.cu_rows.present()) {
    RETURN_IF_ERROR(
        Linear({.x = args.x, .weight = args.weight, .bias = {}, .out = args.workspace}));
    return SiluMul({.gate_up = args.workspace, .out = args.out});
  }
  RETURN_IF_ERROR(GroupedGemm({.x = args.x,
                               .cu_rows = args.cu_rows,
                               .row_idx = args.row_idx,
                               .weight = args.weight,
                               .out = args.workspace}));
  const int32_t used = args.cu_rows.ptr<int32_t>()[args.weight->num_groups()];
  return SiluMul({.gate_up = args.workspace.Slice(0, used), .out = args.out.Slice(0, used)});
}

absl::Status Backend::LinearAndNorm(const LinearAndNormArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  RETURN_IF_ERROR(Linear(args.linear));
  return RmsNorm(args.norm);
}

absl::Status Backend::MlaPrepare(const MlaPrepareArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  RETURN_IF_ERROR(MlaStoreKv(args.store));
  RETURN_IF_ERROR(HeadLinear(args.product()));
  return Rope(args.rotation());
}

absl::Status Backend::MlaValues(const MlaValuesArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  RETURN_IF_ERROR(MlaAttention(args.attention));
  return HeadLinear(args.product());
}

absl::Status Backend::RouteAndDispatch(const RouteTopKArgs& route, const DispatchPlan& plan) {
  RETURN_IF_ERROR(RouteTopK(route));
  return ExpertDispatch({.topk_idx = route.topk_idx, .plan = plan});
}

absl::Status Backend::CopyWeight(const Weight&, Weight&) {
  return absl::UnimplementedError(Description() + " copies no weights");
}

absl::Status Backend::NormAndRoute(const NormAndRouteArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  RETURN_IF_ERROR(RmsNorm(args.norm));
  RETURN_IF_ERROR(
      Linear({.x = args.norm.out, .weight = args.router, .bias = {}, .out = args.route.logits}));
  return args.plan.cu_rows.present() ? RouteAndDispatch(args.route, args.plan)
                                     : RouteTopK(args.route);
}

absl::Status Backend::LinearAndRoute(const LinearAndRouteArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  RETURN_IF_ERROR(Linear(args.linear));
  return NormAndRoute(args.route);
}

absl::Status Backend::CombineAndNorm(const CombineAndNormArgs& args) {
  RETURN_IF_ERROR(Validate(args));
  RETURN_IF_ERROR(ExpertCombine(args.combine));
  return RmsNorm(args.norm);
}

absl::Status Backend::FinishExperts(const GroupedGemmArgs& down, const CombineAndNormArgs& end) {
  RETURN_IF_ERROR(GroupedGemm(down));
  return CombineAndNorm(end);
}

namespace {

absl::Status ServesNoGroup(const Backend& backend) {
  return absl::UnimplementedError(backend.Description() + " serves no group of ranks");
}

}  // namespace

absl::Status Backend::RankDispatch(const RankDispatchArgs&) { return ServesNoGroup(*this); }
absl::Status Backend::ReturnRows(const ReturnRowsArgs&) { return ServesNoGroup(*this); }
absl::Status Backend::PackRows(const PackRowsArgs&) { return ServesNoGroup(*this); }
absl::Status Backend::UnpackRows(const UnpackRowsArgs&) { return ServesNoGroup(*this); }

}  // namespace jevons
