#include "bench/ep_sim_plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace jevons::ep_sim {
namespace {

constexpr double kPanelWidth = 640;
constexpr double kPanelHeight = 350;
constexpr double kHeader = 40;
// Of the axes in a panel; the legend is to the right of them.
constexpr double kLeft = 72;
constexpr double kTop = 54;
constexpr double kWidth = 370;
constexpr double kHeight = 236;
constexpr const char* kColors[] = {"#1f6fb4", "#d9741a", "#2b8f5f",
                                   "#8a4fae", "#b0364a", "#5f6b76"};

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

class PanelWriter {
 public:
  PanelWriter(const Panel& panel, double x, double y, std::string& out)
      : panel_(panel), left_(x + kLeft), top_(y + kTop), out_(out) {
    double most = 0;
    for (const Series& series : panel.series) {
      for (const auto& [at, value] : series.points) most = std::max(most, value);
    }
    step_ = TickStep(most);
    most_ = step_ * std::max(1.0, std::ceil(most / step_ - 1e-9));
  }

  void Write() {
    Text(left_ - kLeft + 12, top_ - 32, "start", "title", panel_.title);
    Axes();
    for (size_t i = 0; i < panel_.series.size(); ++i) {
      Line(panel_.series[i], kColors[i % std::size(kColors)], static_cast<double>(i));
    }
  }

 private:
  double X(double value) const {
    const auto at = [&](double v) { return panel_.log_x ? std::log2(v) : v; };
    const double low = at(panel_.x_ticks.front());
    return left_ + kWidth * (at(value) - low) / (at(panel_.x_ticks.back()) - low);
  }
  double Y(double value) const { return top_ + kHeight * (1 - value / most_); }

  void Text(double x, double y, const char* anchor, const char* kind, const std::string& text) {
    absl::StrAppendFormat(&out_,
                          "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">%s</text>\n",
                          x, y, anchor, kind, Escape(text));
  }

  void Axes() {
    for (int32_t i = 0; i * step_ <= most_ * (1 + 1e-9); ++i) {
      const double y = Y(i * step_);
      absl::StrAppendFormat(&out_, "<path class=\"%s\" d=\"M%.1f %.1fH%.1f\"/>\n",
                            i == 0 ? "axis" : "grid", left_, y, left_ + kWidth);
      Text(left_ - 8, y + 4, "end", "tick", absl::StrFormat("%g", i * step_));
    }
    for (const double tick : panel_.x_ticks) {
      Text(X(tick), top_ + kHeight + 18, "middle", "tick", absl::StrFormat("%g", tick));
    }
    Text(left_ + kWidth / 2, top_ + kHeight + 38, "middle", "label", panel_.x_label);
    Text(left_ - kLeft + 12, top_ - 14, "start", "label", panel_.y_label);
  }

  void Line(const Series& series, const char* color, double place) {
    std::string points;
    for (const auto& [x, y] : series.points)
      absl::StrAppendFormat(&points, "%.1f,%.1f ", X(x), Y(y));
    const char* dash = series.dashed ? " stroke-dasharray=\"6 4\"" : "";
    absl::StrAppendFormat(&out_, "<polyline points=\"%s\" stroke=\"%s\"%s/>\n", points, color,
                          dash);
    for (const auto& [x, y] : series.points) {
      absl::StrAppendFormat(&out_, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"/>\n",
                            X(x), Y(y), color);
    }
    const double x = left_ + kWidth + 14;
    const double y = top_ + 12 + 20 * place;
    absl::StrAppendFormat(&out_, "<path d=\"M%.1f %.1fh22\" stroke=\"%s\" stroke-width=\"2\"%s/>\n",
                          x, y - 4, color, dash);
    Text(x + 28, y, "start", "legend", series.name);
  }

  const Panel& panel_;
  const double left_;
  const double top_;
  std::string& out_;
  double step_ = 1;
  double most_ = 1;
};

}  // namespace

double TickStep(double most) {
  if (!(most > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(most / 5)));
  for (const double factor : {1.0, 2.0, 2.5, 5.0}) {
    if (most <= 5 * factor * power * (1 + 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::string RenderSvg(const std::string& title, std::span<const Panel> panels) {
  const double rows = std::ceil(static_cast<double>(panels.size()) / 2);
  const double width = 2 * kPanelWidth;
  const double height = kHeader + rows * kPanelHeight;
  std::string out = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" "
      "font-family=\"sans-serif\">\n"
      "<style>text{fill:#222;font-size:12px}.head{font-size:17px;font-weight:bold}"
      ".title{font-size:14px;font-weight:bold}.label,.tick{fill:#555}"
      "polyline{fill:none;stroke-width:2}.grid{stroke:#ddd}.axis{stroke:#555}</style>\n"
      "<rect width=\"%g\" height=\"%g\" fill=\"#fff\"/>\n"
      "<text x=\"12\" y=\"26\" class=\"head\">%s</text>\n",
      width, height, width, height, Escape(title));
  for (size_t i = 0; i < panels.size(); ++i) {
    PanelWriter(panels[i], static_cast<double>(i % 2) * kPanelWidth,
                kHeader + static_cast<double>(i / 2) * kPanelHeight, out)
        .Write();
  }
  absl::StrAppend(&out, "</svg>\n");
  return out;
}

}  // namespace jevons::ep_sim
