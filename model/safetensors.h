// One safetensors file: u64 little-endian header length, JSON header, tensor bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/tensor_view.h"

namespace jevons {

// One entry of a header, checked: the bytes lie in the file and their number fits dtype and shape.
struct StoredTensor {
  std::string name;
  std::string dtype;  // as the file spells it, e.g. BF16
  std::vector<int64_t> shape;
  int64_t begin = 0;  // offset in the file
  int64_t end = 0;

  int64_t bytes() const { return end - begin; }
};

// Largest header that is read.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// The tensors that `file` (the whole file) declares, by name. INVALID_ARGUMENT says what is wrong
// and names the tensor: a header that is longer than the file or the limit, not JSON, or not of
// this form; a name or a field twice; an unknown dtype; a size that does not fit dtype and shape;
// bytes outside the file or shared by two tensors.
absl::StatusOr<std::vector<StoredTensor>> ParseSafetensors(std::string_view file);

// The dtype to compute with; nothing for those of the format that this program does not use (F64,
// BOOL, I8 and so on).
std::optional<DType> ToDType(std::string_view safetensors_dtype);

// How the format spells a dtype, e.g. BF16.
std::string_view SafetensorsName(DType dtype);

// "[4, 128]"
std::string ShapeToString(const std::vector<int64_t>& shape);

}  // namespace jevons
