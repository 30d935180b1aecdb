// The plain twins: one loop nest for each op, sums in fp64, nothing shared with the fast versions.
#pragma once

#include <vector>

#include "ops/elementwise.h"
#include "ops/exchange.h"
#include "ops/linear.h"
#include "ops/mla.h"
#include "ops/moe.h"

namespace jevons::reference {

// The dequantised values, groups after each other, each [n, k].
class PlainWeight : public Weight {
 public:
  PlainWeight(int32_t num_groups, int64_t n, int64_t k, WeightUse use, ActivationPrecision input,
              std::vector<float> values)
      : Weight(num_groups, n, k, use, input), values_(std::move(values)) {}
  int64_t bytes() const override { return static_cast<int64_t>(values_.size()) * 4; }
  const float* row(int64_t group, int64_t i) const {
    return values_.data() + (group * n() + i) * k();
  }

 private:
  std::vector<float> values_;
};

// f32, f16, bf16 or f8_e4m3 element at a flat index.
float ReadElement(const TensorView& view, int64_t index);

// Arguments have passed Validate; weights are PlainWeight.
void Embed(const EmbedArgs& args);
void RmsNorm(const RmsNormArgs& args);
void SiluMul(const SiluMulArgs& args);
void Rope(const RopeArgs& args);
void GatherRows(const GatherRowsArgs& args);
void Linear(const LinearArgs& args);
void HeadLinear(const HeadLinearArgs& args);
void GroupedGemm(const GroupedGemmArgs& args);
void RouteTopK(const RouteTopKArgs& args);
void ExpertDispatch(const ExpertDispatchArgs& args);
void ExpertCombine(const ExpertCombineArgs& args);
void RankDispatch(const RankDispatchArgs& args);
void ReturnRows(const ReturnRowsArgs& args);
void PackRows(const PackRowsArgs& args);
void UnpackRows(const UnpackRowsArgs& args);

// One normed or rotated row, shared by the ops that contain it.
void RmsNormRow(const float* x, const float* weight, double eps, int64_t n, float* out);
void RopeRow(const float* x, const float* cos_sin, int64_t d, float* out);

}  // namespace jevons::reference
