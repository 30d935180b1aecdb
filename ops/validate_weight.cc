#include "absl/strings/str_cat.h"
#include "base/strings.h"
#include "ops/arg_check.h"
#include "ops/validate.h"

namespace jevons {
namespace {

constexpr int64_t kScaleBlock = 128;

bool IsWeightType(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
         dtype == DType::kF8E4M3;
}

void CheckPart(ArgCheck& check, const WeightPart& part, int64_t k) {
  if (!IsWeightType(part.data.dtype)) {
    check.Require(
        false, absl::StrCat("data must be f32, f16, bf16 or f8_e4m3, got ", part.data.ToString()));
    return;
  }
  check.Tensor("data", part.data, part.data.dtype, {kAnySize, k});
  if (!check.ok()) return;
  check.InRange("rows", part.data.dim(0), 1, INT32_MAX);
  check.InRange("k", part.data.dim(1), 1, INT32_MAX);
  if (part.data.dtype != DType::kF8E4M3) {
    check.Require(!part.scale.present(), "scale must be absent where data is not f8_e4m3");
    return;
  }
  const int64_t scale_rows = (part.data.dim(0) + kScaleBlock - 1) / kScaleBlock;
  const int64_t scale_columns = (k + kScaleBlock - 1) / kScaleBlock;
  check.Tensor("scale", part.scale, DType::kF32, {scale_rows, scale_columns});
}

}  // namespace

absl::Status Validate(const WeightSpec& spec) {
  if (spec.groups.empty() || spec.groups[0].empty()) {
    return absl::InvalidArgumentError("PackWeight: groups must hold at least one part, got none");
  }
  const TensorView& first = spec.groups[0][0].data;
  const int64_t k = first.rank == 2 ? first.dim(1) : kAnySize;
  int64_t n = 0;
  for (size_t g = 0; g < spec.groups.size(); ++g) {
    int64_t rows = 0;
    for (size_t p = 0; p < spec.groups[g].size(); ++p) {
      const std::string op = absl::StrCat("PackWeight: group ", g, " part ", p);
      ArgCheck check(op);
      CheckPart(check, spec.groups[g][p], k);
      check.Require(spec.input == ActivationPrecision::kExact ||
                        spec.groups[g][p].data.dtype == DType::kF8E4M3,
                    "data must be f8_e4m3 where the input is fp8");
      RETURN_IF_ERROR(check.status());
      rows += spec.groups[g][p].data.dim(0);
    }
    if (spec.use == WeightUse::kGateUp &&
        (spec.groups[g].size() != 2 || 2 * spec.groups[g][0].data.dim(0) != rows)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "PackWeight: group ", g, " must be gate and up with as many rows, got ",
          spec.groups[g].size(), spec.groups[g].size() == 1 ? " part" : " parts of unlike size"));
    }
    if (g == 0) n = rows;
    if (rows != n || rows > INT32_MAX) {
      return absl::InvalidArgumentError(absl::StrCat("PackWeight: group ", g, " must have ", n,
                                                     " rows as group 0 has, got ", rows));
    }
  }
  return absl::OkStatus();
}

absl::Status Validate(std::span<const PackedGroup> groups) {
  if (groups.empty()) {
    return absl::InvalidArgumentError("JoinGroups: groups must hold at least one, got none");
  }
  const Weight& first = *groups[0].from;
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto [from, group] = groups[g];
    if (group < 0 || group >= from->num_groups()) {
      return absl::InvalidArgumentError(absl::StrCat("JoinGroups: group ", g, " must be in [0, ",
                                                     from->num_groups(), "), got ", group));
    }
    if (from->input() != first.input()) {
      return absl::InvalidArgumentError(
          absl::StrCat("JoinGroups: group ", g, " must have the input ",
                       ToAbsl(ActivationPrecisionName(first.input())), " as group 0 has, got ",
                       ToAbsl(ActivationPrecisionName(from->input()))));
    }
    if (from->n() == first.n() && from->k() == first.k() && from->use() == first.use()) continue;
    return absl::InvalidArgumentError(absl::StrCat("JoinGroups: group ", g, " must be [", first.n(),
                                                   ", ", first.k(), "] as group 0 is, got [",
                                                   from->n(), ", ", from->k(), "]"));
  }
  return absl::OkStatus();
}

}  // namespace jevons
