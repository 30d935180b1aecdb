// What the tests of placements share.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "gtest/gtest.h"
#include "parallel/placement.h"

namespace jevons {

inline ExpertMap Plan(std::span<const double> load, const PlacementShape& shape,
                      const ExpertMap* present = nullptr, double copy_price = 0) {
  const auto map =
      PlanPlacement({.load = load, .shape = shape, .present = present, .copy_price = copy_price});
  EXPECT_TRUE(map.ok()) << map.status();
  return map.ok() ? *map : ExpertMap();
}

struct ModelShape {
  std::string name;
  int32_t num_experts;
  PlacementShape shape;
};

// DeepSeek-V3 has 256 experts in 8 groups, V2-Lite 64. 288 slots are 12.5 % more than 256; 64 ranks
// cannot share them evenly, so there one slot a rank is spare.
inline const ModelShape kShapes[] = {
    {"V3 on 8 nodes of 8, 320 slots", 256, {8, 8, 5}},
    {"V3 on 4 nodes of 8, 288 slots", 256, {4, 8, 9}},
    {"V3 on 4 nodes of 8, 320 slots", 256, {4, 8, 10}},
    {"V3 on 1 node of 8, 288 slots", 256, {1, 8, 36}},
    {"V3 on 1 node of 8, 320 slots", 256, {1, 8, 40}},
    {"V3 on 18 nodes of 8, 288 slots", 256, {18, 8, 2}},
    {"V2-Lite on 1 node of 8, 72 slots", 64, {1, 8, 9}},
    {"V2-Lite on 1 node of 4, 72 slots", 64, {1, 4, 18}},
    {"V2-Lite on 2 nodes of 2, 72 slots", 64, {2, 2, 18}},
};

}  // namespace jevons
