// Argument checks shared by all backends. Each returns INVALID_ARGUMENT that names the op, the
// argument, what was wanted and what was given.
#pragma once

#include "base/status.h"
#include "ops/elementwise.h"
#include "ops/exchange.h"
#include "ops/linear.h"
#include "ops/mla.h"
#include "ops/moe.h"
#include "ops/sample.h"

namespace jevons {

// What a backend takes. Activations may be f32 or `activation`; the input of a matrix product is
// `activation`, the cache `kv_cache` or FP8 entries. Index arrays are checked where the host reads.
struct ArgRules {
  DType activation = DType::kF32;
  DType kv_cache = DType::kF32;
  bool read_indices = true;
  bool gated_workspace = true;
};

absl::Status Validate(const EmbedArgs& args, const ArgRules& rules = {});
absl::Status Validate(const RmsNormArgs& args, const ArgRules& rules = {});
absl::Status Validate(const SiluMulArgs& args, const ArgRules& rules = {});
absl::Status Validate(const RopeArgs& args, const ArgRules& rules = {});
absl::Status Validate(const GatherRowsArgs& args, const ArgRules& rules = {});
absl::Status Validate(const LinearArgs& args, const ArgRules& rules = {});
absl::Status Validate(const LinearAndNormArgs& args, const ArgRules& rules = {});
absl::Status Validate(const HeadLinearArgs& args, const ArgRules& rules = {});
absl::Status Validate(const GroupedGemmArgs& args, const ArgRules& rules = {});
absl::Status Validate(const GatedUpArgs& args, const ArgRules& rules = {});
absl::Status Validate(const MlaStoreKvArgs& args, const ArgRules& rules = {});
absl::Status Validate(const MlaPrepareArgs& args, const ArgRules& rules = {});
absl::Status Validate(const MlaAttentionArgs& args, const ArgRules& rules = {});
absl::Status Validate(const MlaValuesArgs& args, const ArgRules& rules = {});
absl::Status Validate(const RouteTopKArgs& args, const ArgRules& rules = {});
absl::Status Validate(const ExpertDispatchArgs& args, const ArgRules& rules = {});
absl::Status Validate(const ExpertCombineArgs& args, const ArgRules& rules = {});
absl::Status Validate(const NormAndRouteArgs& args, const ArgRules& rules = {});
absl::Status Validate(const LinearAndRouteArgs& args, const ArgRules& rules = {});
absl::Status Validate(const CombineAndNormArgs& args, const ArgRules& rules = {});
absl::Status Validate(const RankDispatchArgs& args, const ArgRules& rules = {});
absl::Status Validate(const ReturnRowsArgs& args, const ArgRules& rules = {});
absl::Status Validate(const PackRowsArgs& args, const ArgRules& rules = {});
absl::Status Validate(const UnpackRowsArgs& args, const ArgRules& rules = {});
absl::Status Validate(const SampleTokensArgs& args, const ArgRules& rules = {});
absl::Status Validate(const WeightSpec& spec);
absl::Status Validate(std::span<const PackedGroup> groups);

// Two contiguous tensors of one type and size: what Write and Read of a backend take.
absl::Status ValidateCopy(const TensorView& to, const TensorView& from);
// A contiguous tensor of at most `max_bytes`: what a Readback takes.
absl::Status ValidateReadback(const TensorView& device, int64_t max_bytes);
// ValidateCopy, then memcpy.
absl::Status CopyTensor(const TensorView& to, const TensorView& from);

}  // namespace jevons
