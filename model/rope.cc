#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

// Source  model-spec 2.4; Peng et al., "YaRN", 2023
namespace jevons {
namespace {

// YaRN's factor for attention at scale `factor`.
double Mscale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

// The pair of a head of `dim` values that turns `rotations` times in the original context.
double CorrectionDim(const ModelConfig& config, double rotations) {
  const double length = config.rope_scaling.original_max_position_embeddings;
  return config.qk_rope_head_dim * std::log(length / (2 * std::numbers::pi * rotations)) /
         (2 * std::log(config.rope_theta));
}

}  // namespace

std::vector<float> RopeInvFreq(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  const int32_t dim = config.qk_rope_head_dim;
  double low = 0;
  double high = 1;
  if (scaling.yarn) {
    low = std::max(std::floor(CorrectionDim(config, scaling.beta_fast)), 0.0);
    high = std::min(std::ceil(CorrectionDim(config, scaling.beta_slow)), dim - 1.0);
    if (low == high) high += 0.001;
  }
  std::vector<float> out(static_cast<size_t>(dim / 2));
  for (int32_t i = 0; i < dim / 2; ++i) {
    const double plain = std::pow(config.rope_theta, -2.0 * i / dim);
    const double ramp = scaling.yarn ? std::clamp((i - low) / (high - low), 0.0, 1.0) : 0;
    out[static_cast<size_t>(i)] =
        static_cast<float>(plain * (1 - ramp) + plain / scaling.factor * ramp);
  }
  return out;
}

double RopeCosSinFactor(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  if (!scaling.yarn) return 1;
  return Mscale(scaling.factor, scaling.mscale) / Mscale(scaling.factor, scaling.mscale_all_dim);
}

double SoftmaxScale(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  const double plain = 1 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  if (!scaling.yarn || scaling.mscale_all_dim == 0) return plain;
  // Squared: it stands for a factor on the query and one on the key.
  const double mscale = Mscale(scaling.factor, scaling.mscale_all_dim);
  return plain * mscale * mscale;
}

std::vector<float> RopeTable(const ModelConfig& config, int32_t num_positions) {
  const std::vector<float> inv_freq = RopeInvFreq(config);
  const double factor = RopeCosSinFactor(config);
  const size_t half = inv_freq.size();
  const size_t rows = static_cast<size_t>(std::max(num_positions, 0));
  std::vector<float> out(rows * half * 2);
  for (size_t pos = 0; pos < rows; ++pos) {
    float* row = out.data() + pos * half * 2;
    for (size_t i = 0; i < half; ++i) {
      // The angle is rounded to float because the reference's is; its cosine is exact.
      const float angle = static_cast<float>(pos) * inv_freq[i];
      row[i] = static_cast<float>(std::cos(static_cast<double>(angle)) * factor);
      row[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)) * factor);
    }
  }
  return out;
}

}  // namespace jevons
