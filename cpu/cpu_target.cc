#include "cpu/cpu_target.h"

#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "hwy/highway.h"

namespace jevons {
namespace {

int64_t TargetBits(CpuTarget target) {
  switch (target) {
    case CpuTarget::kAvx512:
      return HWY_AVX3;
    case CpuTarget::kAvx2:
      return HWY_AVX2;
    case CpuTarget::kBaseline:
    case CpuTarget::kBest:
      return HWY_STATIC_TARGET;
  }
  return HWY_STATIC_TARGET;
}

std::string_view Name(CpuTarget target) {
  switch (target) {
    case CpuTarget::kAvx512:
      return "avx512";
    case CpuTarget::kAvx2:
      return "avx2";
    case CpuTarget::kBaseline:
      return "baseline";
    case CpuTarget::kBest:
      return "best";
  }
  return "best";
}

bool MachineHas(CpuTarget target) {
  return target == CpuTarget::kBaseline || (hwy::SupportedTargets() & TargetBits(target)) != 0;
}

}  // namespace

absl::Status UseCpuTarget(CpuTarget target) {
  const int64_t before = hwy::SupportedTargets();
  hwy::SetSupportedTargetsForTest(0);
  if (target == CpuTarget::kBest) return absl::OkStatus();
  if (!MachineHas(target)) {
    hwy::SetSupportedTargetsForTest(before);
    return absl::FailedPreconditionError(
        absl::StrCat("CPU target ", ToAbsl(Name(target)), " is not supported by this machine"));
  }
  hwy::SetSupportedTargetsForTest(TargetBits(target));
  return absl::OkStatus();
}

std::string_view CpuTargetName() {
  for (CpuTarget target : {CpuTarget::kAvx512, CpuTarget::kAvx2}) {
    if (MachineHas(target)) return Name(target);
  }
  return Name(CpuTarget::kBaseline);
}

absl::StatusOr<CpuTarget> ParseCpuTarget(std::string_view name) {
  if (name.empty()) return CpuTarget::kBest;
  for (CpuTarget target : {CpuTarget::kBaseline, CpuTarget::kAvx2, CpuTarget::kAvx512}) {
    if (name == Name(target)) return target;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("CPU target must be baseline, avx2 or avx512, got \"", ToAbsl(name), "\""));
}

absl::StatusOr<std::string> UseCpuTarget(std::string_view name) {
  ASSIGN_OR_RETURN(const CpuTarget target, ParseCpuTarget(name));
  RETURN_IF_ERROR(UseCpuTarget(target));
  return std::string(CpuTargetName());
}

}  // namespace jevons
