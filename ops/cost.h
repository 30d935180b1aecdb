// What one call of an op must at least move and compute: the denominators of every speed we report.
#pragma once

#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/mla.h"
#include "ops/moe.h"

namespace jevons {

struct OpCost {
  int64_t bytes =
      0;  // each input and output once; of a cache or a table only the rows that are used
  int64_t flops = 0;  // a multiplication with an addition is two; exponentials are not counted
};

OpCost Cost(const EmbedArgs& args);
OpCost Cost(const RmsNormArgs& args);
OpCost Cost(const SiluMulArgs& args);
OpCost Cost(const RopeArgs& args);
OpCost Cost(const GatherRowsArgs& args);
OpCost Cost(const LinearArgs& args);
OpCost Cost(const HeadLinearArgs& args);
OpCost Cost(const GroupedGemmArgs& args);
OpCost Cost(const MlaStoreKvArgs& args);
OpCost Cost(const MlaPrepareArgs& args);
OpCost Cost(const MlaAttentionArgs& args);
OpCost Cost(const MlaValuesArgs& args);
OpCost Cost(const RouteTopKArgs& args);
OpCost Cost(const ExpertDispatchArgs& args);
OpCost Cost(const ExpertCombineArgs& args);

}  // namespace jevons
