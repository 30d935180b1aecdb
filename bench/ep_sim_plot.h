// Line charts as one SVG picture.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

namespace jevons::ep_sim {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // x rising
  bool dashed = false;
};

// At most six series. The y axis starts at 0.
struct Panel {
  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_x = false;
  std::vector<double> x_ticks;  // the axis spans them
  std::vector<Series> series;
};

// Panels in rows of two. Text is escaped.
std::string RenderSvg(const std::string& title, std::span<const Panel> panels);

// Distance of ticks, 1, 2, 2.5 or 5 times a power of ten, so that `most` needs five or fewer.
double TickStep(double most);

}  // namespace jevons::ep_sim
