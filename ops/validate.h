// Argument checks shared by all backends. Each returns INVALID_ARGUMENT that names the op, the
// argument, what was wanted and what was given.
#pragma once

#include "base/status.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/mla.h"
#include "ops/moe.h"

namespace jevons {

absl::Status Validate(const EmbedArgs& args);
absl::Status Validate(const RmsNormArgs& args);
absl::Status Validate(const SiluMulArgs& args);
absl::Status Validate(const RopeArgs& args);
absl::Status Validate(const GatherRowsArgs& args);
absl::Status Validate(const LinearArgs& args);
absl::Status Validate(const HeadLinearArgs& args);
absl::Status Validate(const GroupedGemmArgs& args);
absl::Status Validate(const MlaStoreKvArgs& args);
absl::Status Validate(const MlaAttentionArgs& args);
absl::Status Validate(const RouteTopKArgs& args);
absl::Status Validate(const ExpertDispatchArgs& args);
absl::Status Validate(const ExpertCombineArgs& args);
absl::Status Validate(const WeightSpec& spec);

}  // namespace jevons
