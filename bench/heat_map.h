// A picture of loads: one cell for each layer and rank.
#pragma once

#include <string>
#include <vector>

namespace jevons {

struct HeatMapPanel {
  std::string title;
  std::string note;
  // load[layer][rank] over the layer's mean; every layer has as many ranks as the first.
  std::vector<std::vector<double>> load;
};

// An SVG picture with the panels side by side, the highest load of each layer as a number beside its
// row, and the scale of colours: white is the mean, blue less, red more, all from twice the mean on
// as dark.
std::string HeatMapSvg(const std::string& title, const std::vector<HeatMapPanel>& panels);

}  // namespace jevons
