// What a device must be able to do for a model. The model speaks to this and never to a device.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/mla.h"
#include "ops/moe.h"
#include "ops/weight.h"

namespace jevons {

// Device memory. Freed with the object.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void* data() = 0;
  virtual int64_t bytes() const = 0;
};

struct DeviceTensor {
  std::unique_ptr<Buffer> buffer;
  TensorView view;
};

// Owned by one thread: the engine thread, after the loading thread has handed it over. Every op
// validates its arguments: INVALID_ARGUMENT names op, argument, what was wanted and what was given,
// and nothing is written.
class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu (avx512, 2 threads)"
  virtual std::string Description() const = 0;

  // Zeroed memory, aligned to 64 bytes. RESOURCE_EXHAUSTED with the size where there is none.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes) = 0;
  // Copies a contiguous host tensor to the device.
  virtual absl::StatusOr<DeviceTensor> Upload(const TensorView& host) = 0;
  // INVALID_ARGUMENT for shapes that do not fit together or a NaN among f8 values.
  virtual absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) = 0;

  virtual absl::Status Embed(const EmbedArgs& args) = 0;
  virtual absl::Status RmsNorm(const RmsNormArgs& args) = 0;
  virtual absl::Status SiluMul(const SiluMulArgs& args) = 0;
  virtual absl::Status Rope(const RopeArgs& args) = 0;
  virtual absl::Status GatherRows(const GatherRowsArgs& args) = 0;
  virtual absl::Status Linear(const LinearArgs& args) = 0;
  virtual absl::Status HeadLinear(const HeadLinearArgs& args) = 0;
  virtual absl::Status GroupedGemm(const GroupedGemmArgs& args) = 0;
  virtual absl::Status MlaStoreKv(const MlaStoreKvArgs& args) = 0;
  virtual absl::Status MlaAttention(const MlaAttentionArgs& args) = 0;
  virtual absl::Status RouteTopK(const RouteTopKArgs& args) = 0;
  virtual absl::Status ExpertDispatch(const ExpertDispatchArgs& args) = 0;
  virtual absl::Status ExpertCombine(const ExpertCombineArgs& args) = 0;
};

}  // namespace jevons
