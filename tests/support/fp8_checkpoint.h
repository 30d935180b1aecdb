// A random checkpoint whose linear layers are stored as FP8, as those of DeepSeek-V3 are.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "bench/random_checkpoint.h"
#include "model/tensor_specs.h"
#include "ops/fp8_entry.h"

namespace jevons {

// Used by one thread at a time.
class Fp8Checkpoint : public Checkpoint {
 public:
  Fp8Checkpoint(const ModelConfig& config, uint64_t seed) : exact_(config, seed) {
    for (const TensorSpec& spec : ExpectedTensors(config)) {
      if (spec.kind == TensorKind::kLinear && spec.name != kHeadTensor) Add(spec.name);
    }
  }

  absl::StatusOr<TensorView> Find(std::string_view name) const override {
    const auto found = views_.find(name);
    if (found != views_.end()) return found->second;
    return exact_.Find(name);
  }
  bool Has(std::string_view name) const override {
    return views_.contains(name) || exact_.Has(name);
  }
  std::vector<std::string> Names() const override {
    std::vector<std::string> names = exact_.Names();
    for (const auto& [name, view] : views_) {
      if (name.ends_with(kScaleSuffix)) names.push_back(name);
    }
    return names;
  }
  void Release(std::string_view name) const override { exact_.Release(name); }

 private:
  static constexpr std::string_view kScaleSuffix = "_scale_inv";

  // The scale of each block is one that no other beside it has.
  void Add(const std::string& name) {
    const TensorView exact = *exact_.Find(name);
    const int64_t rows = exact.dim(0);
    const int64_t k = exact.dim(1);
    const int64_t blocks = (k + kScaleBlock - 1) / kScaleBlock;
    std::vector<float>& scales = scales_[name];
    for (int64_t i = 0; i < (rows + kScaleBlock - 1) / kScaleBlock * blocks; ++i) {
      scales.push_back(0.002f * (1 + 0.1f * static_cast<float>(i % 7)));
    }
    std::vector<uint8_t>& values = values_[name];
    for (int64_t i = 0; i < rows * k; ++i) {
      const float scale = scales[i / k / kScaleBlock * blocks + i % k / kScaleBlock];
      values.push_back(ToFp8(Bf16ToFloat(exact.ptr<uint16_t>()[i]) / scale, 1));
    }
    views_[name] = TensorView(values.data(), DType::kF8E4M3, {rows, k});
    views_[name + std::string(kScaleSuffix)] = TensorView(
        scales.data(), DType::kF32, {static_cast<int64_t>(scales.size()) / blocks, blocks});
  }

  RandomCheckpoint exact_;
  std::map<std::string, std::vector<uint8_t>> values_;
  std::map<std::string, std::vector<float>> scales_;
  std::map<std::string, TensorView, std::less<>> views_;
};

}  // namespace jevons
