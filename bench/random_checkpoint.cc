#include "bench/random_checkpoint.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/random.h"
#include "base/strings.h"
#include "model/tensor_specs.h"

namespace jevons {
namespace {

constexpr size_t kTableSize = 1 << 12;

// Normal values times `scale`, plus `mean`, drawn from a table: billions of them are wanted.
std::vector<uint16_t> RandomValues(size_t count, double mean, double scale, uint64_t seed) {
  Random random(seed);
  std::vector<uint16_t> table(kTableSize);
  for (uint16_t& value : table) {
    value = FloatToBf16(static_cast<float>(mean + scale * random.Normal()));
  }
  std::vector<uint16_t> out(count);
  uint64_t state = seed * 2 + 1;
  for (size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    out[i] = table[state >> 52];
  }
  return out;
}

}  // namespace

RandomCheckpoint::RandomCheckpoint(const ModelConfig& config, uint64_t seed) : seed_(seed) {
  for (const TensorSpec& spec : ExpectedTensors(config)) shapes_[spec.name] = spec.shape;
}

absl::StatusOr<TensorView> RandomCheckpoint::Find(std::string_view name) const {
  const auto shape = shapes_.find(name);
  if (shape == shapes_.end()) return absl::NotFoundError(absl::StrCat("no tensor ", ToAbsl(name)));
  const std::vector<int64_t>& dims = shape->second;
  std::vector<uint16_t>& values = made_[std::string(name)];
  size_t count = 1;
  for (int64_t dim : dims) count *= static_cast<size_t>(dim);
  if (values.empty()) {
    const bool norm = dims.size() == 1 && name.ends_with("norm.weight");
    const bool embedding = name.ends_with("embed_tokens.weight");
    const double scale = dims.size() == 1
                             ? 0.1
                             : (embedding ? 1.0 : 1 / std::sqrt(static_cast<double>(dims.back())));
    values = RandomValues(count, norm ? 1 : 0, scale, seed_ ^ std::hash<std::string_view>()(name));
  }
  return dims.size() == 1 ? TensorView(values.data(), DType::kBF16, {dims[0]})
                          : TensorView(values.data(), DType::kBF16, {dims[0], dims[1]});
}

bool RandomCheckpoint::Has(std::string_view name) const { return shapes_.contains(name); }

std::vector<std::string> RandomCheckpoint::Names() const {
  std::vector<std::string> out;
  for (const auto& [name, shape] : shapes_) out.push_back(name);
  return out;
}

void RandomCheckpoint::Release(std::string_view name) const {
  const auto it = made_.find(name);
  if (it != made_.end()) made_.erase(it);
}

}  // namespace jevons
