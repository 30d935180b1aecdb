#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "cuda/cuda_backend.h"

namespace jevons {
namespace {

constexpr int64_t kMiB = 1 << 20;
// Memory as nvidia-smi shows it.
constexpr std::array<CudaDeviceSpec, 4> kSpecs = {{{"a100", 81'920 * kMiB, 80, 108},
                                                   {"h100", 81'559 * kMiB, 90, 132},
                                                   {"h200", 143'771 * kMiB, 90, 132},
                                                   {"b200", 183'359 * kMiB, 100, 148}}};

}  // namespace

absl::StatusOr<CudaDeviceSpec> FindCudaDeviceSpec(std::string_view name) {
  std::string known;
  for (const CudaDeviceSpec& spec : kSpecs) {
    if (spec.name == name) return spec;
    absl::StrAppend(&known, known.empty() ? "" : ", ", ToAbsl(spec.name));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("gpu must be one of ", known, ", given \"", ToAbsl(name), "\""));
}

}  // namespace jevons
