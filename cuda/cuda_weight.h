// Weights as the matrix kernels read them.
#pragma once

#include <memory>
#include <utility>

#include "cuda/device_memory.h"
#include "cuda/gemm_layout.h"

namespace jevons::cuda {

class CudaWeight : public Weight {
 public:
  CudaWeight(int32_t num_groups, WeightUse use, ActivationPrecision input,
             const PackedLayout& layout, std::unique_ptr<DeviceBuffer> values,
             std::unique_ptr<DeviceBuffer> scales)
      : Weight(num_groups, layout.n, layout.k, use, input),
        layout_(layout),
        values_(std::move(values)),
        scales_(std::move(scales)) {}

  int64_t bytes() const override {
    return num_groups() * (PackedBytes(layout_) + ScaleBytes(layout_));
  }

  const PackedLayout& layout() const { return layout_; }
  void* data() const { return values_->data(); }
  // Null where the layout has none.
  float* scales() const { return scales_ == nullptr ? nullptr : scales_->ptr<float>(); }

 private:
  const PackedLayout layout_;
  const std::unique_ptr<DeviceBuffer> values_;
  const std::unique_ptr<DeviceBuffer> scales_;
};

// Scratch for the raw rows of the largest matrix.
int64_t PackScratchBytes();

// The layout that the backend gives a weight: e4m3 is kept where its scales can be.
PackedLayout ChooseLayout(const WeightSpec& spec);

}  // namespace jevons::cuda
