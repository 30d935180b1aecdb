// What the simulator reports: published figures beside its own, choices, charts.
#include <cmath>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

#include "bench/ep_sim_checks.h"
#include "bench/ep_sim_machines.h"
#include "bench/ep_sim_sweeps.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace jevons::ep_sim {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

int32_t Count(const std::string& text, const std::string& part) {
  int32_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(EpSimReportTest, PublishedFiguresAreMetAsTheDocumentSays) {
  const absl::StatusOr<std::vector<Check>> checks = PublishedChecks();
  ASSERT_TRUE(checks.ok()) << checks.status();
  std::map<std::string, int32_t> num_of_group;
  for (const Check& check : *checks) {
    SCOPED_TRACE(check.name + ", " + check.source);
    ++num_of_group[check.group];
    ASSERT_TRUE(std::isfinite(check.predicted));
    ASSERT_GT(check.predicted, 0);
    if (check.is_input) {
      EXPECT_NEAR(check.error(), 0, 0.03);
    } else if (check.group == "kernel") {
      // Never slower than measured: what the rates leave out only adds time.
      EXPECT_LT(check.error(), 0);
      EXPECT_GT(check.error(), -0.40);
    } else if (check.group == "exchange") {
      EXPECT_NEAR(check.error(), 0, check.name.ends_with("EP8") ? 0.35 : 0.10);
    } else if (check.name.find("a day") != std::string::npos) {
      // A mean over a day's load, not a full batch.
      EXPECT_GT(check.error(), 0);
    } else if (check.name.starts_with("prefill")) {
      EXPECT_NEAR(check.error(), 0, 0.20);
    } else if (check.name.starts_with("decode")) {
      EXPECT_GT(check.error(), 0.15);
      EXPECT_LT(check.error(), 0.40);
    } else {
      EXPECT_NEAR(check.error(), 0, 0.25);
      EXPECT_EQ(check.predicted > 1, check.published > 1) << "another verdict on two batches";
    }
  }
  EXPECT_EQ(num_of_group["kernel"], 18);
  EXPECT_EQ(num_of_group["exchange"], 12);
  EXPECT_EQ(num_of_group["step"], 10);
  EXPECT_EQ(num_of_group["ratio"], 4);
}

TEST(EpSimReportTest, BestIsNeverSlowerThanOneBatch) {
  for (const int32_t seqs : {1, 2, 16, 128}) {
    Deployment d = Baseline(H100(), 72);
    const Step step = {.num_seqs = seqs, .context = 2048};
    const absl::StatusOr<Outcome> best = Best(d, step);
    ASSERT_TRUE(best.ok()) << best.status();
    EXPECT_EQ(best->two_batches, seqs == 128) << seqs;
    d.overlap = Overlap::kNone;
    EXPECT_GE(best->tokens_per_second, Best(d, step)->tokens_per_second);
    EXPECT_NEAR(best->tokens_per_second * best->time.seconds, seqs, 1e-6);
  }
}

TEST(EpSimReportTest, EveryChoiceHasAnOutcomeOrAReason) {
  const std::vector<Choice> choices = Choices();
  ASSERT_EQ(choices[0].name, "base");
  for (const Choice& choice : choices) {
    ASSERT_EQ(choice.outcomes.size(), ChoicePlaces().size());
    for (const absl::StatusOr<Outcome>& outcome : choice.outcomes) {
      if (outcome.ok()) {
        EXPECT_GT(outcome->tokens_per_second, 0) << choice.name;
      } else {
        EXPECT_FALSE(outcome.status().message().empty()) << choice.name;
      }
    }
  }
  for (const absl::StatusOr<Outcome>& outcome : choices[0].outcomes) EXPECT_TRUE(outcome.ok());
}

TEST(EpSimReportTest, TicksAreRoundAndFew) {
  EXPECT_DOUBLE_EQ(TickStep(4.9), 1);
  EXPECT_DOUBLE_EQ(TickStep(5.1), 2);
  EXPECT_DOUBLE_EQ(TickStep(12), 2.5);
  EXPECT_DOUBLE_EQ(TickStep(1), 0.2);
  EXPECT_DOUBLE_EQ(TickStep(4700), 1000);
  EXPECT_DOUBLE_EQ(TickStep(0), 1);
}

TEST(EpSimReportTest, APictureHasEachSeriesOnceAndNoNumberThatIsNone) {
  const std::vector<Panel> panels = Charts();
  int32_t num_series = 0;
  int32_t num_points = 0;
  for (const Panel& panel : panels) {
    for (const Series& series : panel.series) {
      EXPECT_FALSE(series.points.empty()) << panel.title << ": " << series.name;
      ++num_series;
      num_points += static_cast<int32_t>(series.points.size());
      for (const auto& [x, y] : series.points) {
        EXPECT_GE(x, panel.x_ticks.front()) << panel.title;
        EXPECT_LE(x, panel.x_ticks.back()) << panel.title;
        EXPECT_GT(y, 0) << panel.title;
      }
    }
  }
  const std::string svg = RenderSvg("a < b & c", panels);
  EXPECT_EQ(Count(svg, "<polyline "), num_series);
  EXPECT_EQ(Count(svg, "<circle "), num_points);
  EXPECT_EQ(Count(svg, "<text "), Count(svg, "</text>"));
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; c"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

TEST(EpSimReportTest, ThePictureInTheDocumentsIsTheOneThatIsDrawnNow) {
  std::ifstream file(std::string(JEVONS_SOURCE_DIR) + "/docs/ep_sim.svg");
  ASSERT_TRUE(file.good());
  const std::string stored((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
  EXPECT_TRUE(stored == RenderSvg(ChartsTitle(), Charts())) << "run make ep-sim";
}

TEST(EpSimReportTest, APictureWithoutValuesIsStillOne) {
  const Panel panel = {.title = "none",
                       .x_label = "x",
                       .y_label = "y",
                       .x_ticks = {0, 1},
                       .series = {{.name = "empty", .points = {}}}};
  const std::string svg = RenderSvg("none", std::vector<Panel>{panel});
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
}

}  // namespace
}  // namespace jevons::ep_sim
