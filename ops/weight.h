// Weights of linear layers as a backend keeps them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/tensor_view.h"

namespace jevons {

// Rows of one stored matrix, host memory, read only during PackWeight.
struct WeightPart {
  TensorView data;   // [rows, k], f32 f16 bf16 or f8_e4m3, contiguous rows
  TensorView scale;  // f8_e4m3 only: f32 [ceil(rows / 128), ceil(k / 128)]; value = f8 * scale
};

// What the rows of a group mean to the ops that take the weight.
enum class WeightUse {
  kPlain,
  kGateUp,  // two parts of equal size, gate and up: for GatedUp alone
};

// What products of FP8 weights read.
enum class ActivationPrecision {
  kExact,  // activations as they are
  kFp8,    // rounded to FP8, so that a device may multiply FP8 with FP8
};
// "exact", "fp8"
std::string_view ActivationPrecisionName(ActivationPrecision precision);

// groups[g] is the list of parts that are stacked by rows into the matrix [n, k] of group g (an
// expert, a head; one group for a plain linear layer). All groups have the same n and k.
struct WeightSpec {
  std::vector<std::vector<WeightPart>> groups;
  WeightUse use = WeightUse::kPlain;
  // kFp8: all parts are f8_e4m3.
  ActivationPrecision input = ActivationPrecision::kExact;
};
bool IsAllFp8(const WeightSpec& spec);

// A packed weight, owned by the caller, usable with the backend that made it and others of its kind and
// device. Immutable but for Backend::CopyWeight, and so thread-safe.
class Weight {
 public:
  Weight(int32_t num_groups, int64_t n, int64_t k, WeightUse use = WeightUse::kPlain,
         ActivationPrecision input = ActivationPrecision::kExact)
      : num_groups_(num_groups), n_(n), k_(k), use_(use), input_(input) {}
  virtual ~Weight() = default;

  int32_t num_groups() const { return num_groups_; }
  int64_t n() const { return n_; }  // outputs
  int64_t k() const { return k_; }  // inputs
  WeightUse use() const { return use_; }
  ActivationPrecision input() const { return input_; }
  // Bytes held, and so the bytes that one use of every group reads.
  virtual int64_t bytes() const = 0;

 private:
  int32_t num_groups_;
  int64_t n_;
  int64_t k_;
  WeightUse use_;
  ActivationPrecision input_;
};

// A group of a weight that is packed.
struct PackedGroup {
  const Weight* from = nullptr;
  int32_t group = 0;
};

}  // namespace jevons
