#include "bench/heat_map.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace jevons {
namespace {

// Pixels.
constexpr int kCellWidth = 9;
constexpr int kCellHeight = 10;
constexpr int kMargin = 16;
constexpr int kLayerWidth = 28;  // of the layer numbers at the left
constexpr int kHighWidth = 46;   // of the highest loads at the right
constexpr int kTop = 84;         // of the first row
constexpr int kColours = 41;

struct Rgb {
  double r, g, b;
};
constexpr Rgb kLow = {33, 102, 172};
constexpr Rgb kMean = {247, 247, 247};
constexpr Rgb kHigh = {178, 24, 43};

// Of step 0 .. kColours - 1: from 0 to twice the mean.
std::string ColourOf(int step) {
  const double x = 2.0 * step / (kColours - 1) - 1;
  const Rgb& end = x < 0 ? kLow : kHigh;
  const auto mix = [&](double from, double to) {
    return static_cast<int>(std::lround(from + (to - from) * std::abs(x)));
  };
  return absl::StrFormat("#%02x%02x%02x", mix(kMean.r, end.r), mix(kMean.g, end.g),
                         mix(kMean.b, end.b));
}

// Cells are drawn colour by colour: the picture is a quarter of the size.
class Cells {
 public:
  Cells() : paths_(kColours) {}

  void Add(int x, int y, int width, double load) {
    const int step = static_cast<int>(std::lround(load / 2 * (kColours - 1)));
    absl::StrAppendFormat(&paths_[std::clamp(step, 0, kColours - 1)], "M%d %dh%dv%dh-%dz", x, y,
                          width, kCellHeight, width);
  }

  void AppendTo(std::string& svg) const {
    for (int step = 0; step < kColours; ++step) {
      if (paths_[step].empty()) continue;
      absl::StrAppendFormat(&svg, "<path fill=\"%s\" d=\"%s\"/>\n", ColourOf(step), paths_[step]);
    }
  }

 private:
  std::vector<std::string> paths_;
};

void Text(std::string& svg, int x, int y, int size, const char* anchor, const std::string& text) {
  absl::StrAppendFormat(&svg,
                        "<text x=\"%d\" y=\"%d\" font-size=\"%d\" text-anchor=\"%s\">%s</text>\n",
                        x, y, size, anchor, text);
}

int WidthOf(const HeatMapPanel& panel) {
  return kCellWidth * static_cast<int>(panel.load[0].size());
}

void AppendPanel(std::string& svg, int left, const HeatMapPanel& panel) {
  const int width = WidthOf(panel);
  const int high = left + width + kHighWidth - 4;
  Cells cells;
  Text(svg, left, kTop - 36, 13, "start", panel.title);
  Text(svg, left, kTop - 20, 11, "start", panel.note);
  Text(svg, left, kTop - 5, 9, "start", "rank 0");
  Text(svg, left + width, kTop - 5, 9, "end",
       absl::StrFormat("%d", static_cast<int>(panel.load[0].size()) - 1));
  Text(svg, high, kTop - 5, 9, "end", "busiest");
  for (size_t layer = 0; layer < panel.load.size(); ++layer) {
    const std::vector<double>& load = panel.load[layer];
    const int y = kTop + static_cast<int>(layer) * kCellHeight;
    for (size_t rank = 0; rank < load.size(); ++rank) {
      cells.Add(left + static_cast<int>(rank) * kCellWidth, y, kCellWidth, load[rank]);
    }
    Text(svg, high, y + kCellHeight - 2, 9, "end",
         absl::StrFormat("%.2f", *std::max_element(load.begin(), load.end())));
  }
  cells.AppendTo(svg);
  absl::StrAppendFormat(
      &svg, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#999\"/>\n",
      left, kTop, width, static_cast<int>(panel.load.size()) * kCellHeight);
}

void AppendScale(std::string& svg, int y) {
  constexpr int kStepWidth = 8;
  const int left = kMargin + kLayerWidth;
  Cells cells;
  for (int i = 0; i < kColours; ++i) {
    cells.Add(left + i * kStepWidth, y, kStepWidth, 2.0 * i / (kColours - 1));
  }
  cells.AppendTo(svg);
  const int width = kColours * kStepWidth;
  Text(svg, left, y + 22, 10, "start", "0");
  Text(svg, left + width / 2, y + 22, 10, "middle", "the mean");
  Text(svg, left + width, y + 22, 10, "end", "twice or more");
}

}  // namespace

std::string HeatMapSvg(const std::string& title, const std::vector<HeatMapPanel>& panels) {
  size_t num_layers = 0;
  int width = kMargin + kLayerWidth;
  std::string body;
  for (const HeatMapPanel& panel : panels) {
    num_layers = std::max(num_layers, panel.load.size());
    AppendPanel(body, width, panel);
    width += WidthOf(panel) + kHighWidth + kMargin;
  }
  const int bottom = kTop + static_cast<int>(num_layers) * kCellHeight;
  for (size_t layer = 0; layer < num_layers; layer += 10) {
    Text(body, kMargin + kLayerWidth - 4,
         kTop + static_cast<int>(layer) * kCellHeight + kCellHeight - 2, 9, "end",
         absl::StrFormat("%d", static_cast<int>(layer)));
  }
  Text(body, kMargin, kTop - 5, 9, "start", "layer");
  AppendScale(body, bottom + 14);
  Text(body, kMargin, 24, 15, "start", title);
  const int height = bottom + 52;
  return absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
      "font-family=\"sans-serif\" fill=\"#222\" shape-rendering=\"crispEdges\">\n"
      "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n%s</svg>\n",
      width, height, width, height, width, height, body);
}

}  // namespace jevons
