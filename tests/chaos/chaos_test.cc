// A short run of the driver: its long form is `make chaos`.
#include "tests/chaos/chaos.h"

#include <cstdio>

#include "gtest/gtest.h"

namespace jevons {
namespace {

TEST(ChaosTest, RanksComeToGriefAndNoClientSeesIt) {
  ChaosReport report;
  const absl::Status status = RunChaos({.binary = JEVONS_BINARY,
                                        .seed = 20261128,
                                        .duration = absl::Seconds(20),
                                        .num_ranks = 6,
                                        .num_clients = 8,
                                        .num_canaries = 30,
                                        .max_losses = 4,
                                        .mean_pause = absl::Seconds(1.5)},
                                       report);
  EXPECT_TRUE(status.ok()) << status;
  std::printf("%s", report.Summary().c_str());
  EXPECT_TRUE(report.failures().empty()) << report.Summary();
  EXPECT_GT(report.count("whole answers compared"), 0);
}

}  // namespace
}  // namespace jevons
