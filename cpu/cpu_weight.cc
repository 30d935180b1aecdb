#include "cpu/cpu_weight.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

constexpr int64_t kScaleBlock = 128;
// Factors are kept times kF8ScaleUnit, which must not overflow.
constexpr float kMaxF8Scale = 0x1.0p100f;
// Inputs that are packed at a time: their panel stays in the first cache.
constexpr int64_t kPackInputs = 128;

// Files need not align their tensors, so elements are read as bytes.
template <typename T>
T ReadAt(const uint8_t* data, int64_t index) {
  T out;
  std::memcpy(&out, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return out;
}

// One output of a panel: a row of some part.
struct Row {
  const WeightPart* part = nullptr;  // null past n
  int64_t part_row = 0;
  const uint8_t* data = nullptr;
};
using PanelRows = std::array<Row, kPanelOutputs>;

PanelRows FindRows(const std::vector<WeightPart>& parts, int64_t panel) {
  PanelRows rows;
  size_t p = 0;
  int64_t part_row = panel * kPanelOutputs;
  for (Row& row : rows) {
    while (p < parts.size() && part_row >= parts[p].data.dim(0)) part_row -= parts[p++].data.dim(0);
    if (p == parts.size()) break;
    const TensorView& data = parts[p].data;
    row.part = &parts[p];
    row.part_row = part_row;
    row.data = data.ptr<const uint8_t>() + part_row * data.dim(1) * DTypeBytes(data.dtype);
    ++part_row;
  }
  return rows;
}

float ScaleOf(const Row& row, int64_t k) {
  const TensorView& scale = row.part->scale;
  return ReadAt<float>(scale.ptr<const uint8_t>(),
                       row.part_row / kScaleBlock * scale.dim(1) + k / kScaleBlock);
}

float ReadValue(const Row& row, int64_t k) {
  switch (row.part->data.dtype) {
    case DType::kF32:
      return ReadAt<float>(row.data, k);
    case DType::kF16:
      return F16ToFloat(ReadAt<uint16_t>(row.data, k));
    case DType::kBF16:
      return Bf16ToFloat(ReadAt<uint16_t>(row.data, k));
    default:
      return F8E4M3ToFloat(row.data[k]) * ScaleOf(row, k);
  }
}

bool F8MustExpand(const std::vector<WeightPart>& parts) {
  int64_t begin = 0;
  for (const WeightPart& part : parts) {
    if (begin % kPanelOutputs != 0) return true;
    begin += part.data.dim(0);
    for (int64_t i = 0; i < part.scale.num_elements(); ++i) {
      const float scale = ReadAt<float>(part.scale.ptr<const uint8_t>(), i);
      if (!(std::fabs(scale) < kMaxF8Scale)) return true;
    }
  }
  return false;
}

WeightFormat ChooseFormat(const WeightSpec& spec) {
  const DType dtype = spec.groups[0][0].data.dtype;
  for (const std::vector<WeightPart>& parts : spec.groups) {
    for (const WeightPart& part : parts) {
      if (part.data.dtype != dtype) return WeightFormat::kF32;
    }
    if (dtype == DType::kF8E4M3 && F8MustExpand(parts)) return WeightFormat::kF32;
  }
  switch (dtype) {
    case DType::kF16:
      return WeightFormat::kF16;
    case DType::kBF16:
      return WeightFormat::kBF16;
    case DType::kF8E4M3:
      return WeightFormat::kF8;
    default:
      return WeightFormat::kF32;
  }
}

bool IsNanF8(uint8_t bits) { return (bits & 0x7F) == 0x7F; }

// First NaN of the panel's f8 rows, as an error.
absl::Status CheckF8(const PanelRows& rows, int64_t k, int64_t group, int64_t panel) {
  for (int64_t j = 0; j < kPanelOutputs; ++j) {
    const Row& row = rows[j];
    if (row.part == nullptr || row.part->data.dtype != DType::kF8E4M3) continue;
    const uint8_t* nan = std::find_if(row.data, row.data + k, IsNanF8);
    if (nan == row.data + k) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("PackWeight: f8_e4m3 values must not be NaN, got one in group ", group,
                     ", row ", panel * kPanelOutputs + j, ", column ", nan - row.data));
  }
  return absl::OkStatus();
}

// Inputs [begin, end) of a panel of floats.
void PackF32(const PanelRows& rows, int64_t begin, int64_t end, uint8_t* panel) {
  auto* out = reinterpret_cast<float*>(panel);
  for (int64_t j = 0; j < kPanelOutputs; ++j) {
    if (rows[j].part == nullptr) continue;
    for (int64_t k = begin; k < end; ++k) out[k * kPanelOutputs + j] = ReadValue(rows[j], k);
  }
}

template <typename T>
void PackPlain(const PanelRows& rows, int64_t begin, int64_t end, uint8_t* panel) {
  auto* out = reinterpret_cast<T*>(panel);
  for (int64_t j = 0; j < kPanelOutputs; ++j) {
    if (rows[j].part == nullptr) continue;
    for (int64_t k = begin; k < end; ++k) out[k * kPanelOutputs + j] = ReadAt<T>(rows[j].data, k);
  }
}

void PackBf16(const PanelRows& rows, int64_t begin, int64_t end, uint8_t* panel) {
  constexpr int64_t kWords = kPanelOutputs / 2;
  auto* out = reinterpret_cast<uint32_t*>(panel);
  for (int64_t j = 0; j < kWords && rows[j].part != nullptr; ++j) {
    const uint8_t* low = rows[j].data;
    const uint8_t* high = rows[j + kWords].data;
    for (int64_t k = begin; k < end; ++k) {
      const uint32_t upper = high == nullptr ? 0 : ReadAt<uint16_t>(high, k);
      out[k * kWords + j] = ReadAt<uint16_t>(low, k) | upper << 16;
    }
  }
}

void PackPanel(const PanelRows& rows, WeightFormat format, int64_t k, uint8_t* panel) {
  for (int64_t begin = 0; begin < k; begin += kPackInputs) {
    const int64_t end = std::min(begin + kPackInputs, k);
    switch (format) {
      case WeightFormat::kF32:
        PackF32(rows, begin, end, panel);
        break;
      case WeightFormat::kF16:
        PackPlain<uint16_t>(rows, begin, end, panel);
        break;
      case WeightFormat::kBF16:
        PackBf16(rows, begin, end, panel);
        break;
      case WeightFormat::kF8:
        PackPlain<uint8_t>(rows, begin, end, panel);
        break;
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Weight>> PackCpuWeight(const WeightSpec& spec, ThreadPool& pool) {
  const auto num_groups = static_cast<int32_t>(spec.groups.size());
  const int64_t k = spec.groups[0][0].data.dim(1);
  int64_t n = 0;
  for (const WeightPart& part : spec.groups[0]) n += part.data.dim(0);

  const WeightFormat format = ChooseFormat(spec);
  const int64_t num_panels = (n + kPanelOutputs - 1) / kPanelOutputs;
  const int64_t panel_bytes = k * kPanelOutputs * WeightElementBytes(format);
  const int64_t panel_scales =
      format == WeightFormat::kF8 ? (k + kF8ScaleInputs - 1) / kF8ScaleInputs : 0;
  const int64_t total_panels = num_groups * num_panels;
  ASSIGN_OR_RETURN(HugeBuffer data, HugeBuffer::Allocate(total_panels * panel_bytes));
  ASSIGN_OR_RETURN(HugeBuffer scales, HugeBuffer::Allocate(total_panels * panel_scales * 4));

  std::atomic<int64_t> first_bad(total_panels);
  pool.ParallelFor(total_panels, [&](int64_t task, int) {
    const std::vector<WeightPart>& parts = spec.groups[task / num_panels];
    const PanelRows rows = FindRows(parts, task % num_panels);
    if (!CheckF8(rows, k, 0, 0).ok()) {
      int64_t seen = first_bad.load();
      while (task < seen && !first_bad.compare_exchange_weak(seen, task)) {
      }
      return;
    }
    PackPanel(rows, format, k, data.data() + task * panel_bytes);
    auto* scale = reinterpret_cast<float*>(scales.data()) + task * panel_scales;
    for (int64_t s = 0; s < panel_scales; ++s) {
      scale[s] = ScaleOf(rows[0], s * kF8ScaleInputs) * kF8ScaleUnit;
    }
  });
  if (first_bad.load() < total_panels) {
    const int64_t group = first_bad.load() / num_panels;
    const int64_t panel = first_bad.load() % num_panels;
    return CheckF8(FindRows(spec.groups[group], panel), k, group, panel);
  }
  return std::make_unique<CpuWeight>(num_groups, n, k, spec.use, spec.input, format,
                                     std::move(data), std::move(scales));
}

absl::StatusOr<std::unique_ptr<Weight>> JoinCpuGroups(std::span<const PackedGroup> groups,
                                                      ThreadPool& pool) {
  const auto num_groups = static_cast<int64_t>(groups.size());
  std::vector<const CpuWeight*> weights;
  for (const PackedGroup& group : groups) {
    weights.push_back(dynamic_cast<const CpuWeight*>(group.from));
    if (weights.back() != nullptr && weights.back()->format() == weights[0]->format()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("JoinGroups: group ", weights.size() - 1,
                     " must be packed by this backend and stored in the type of group 0"));
  }
  const CpuWeight& first = *weights[0];
  const int64_t bytes = first.group_bytes();
  const int64_t scale_bytes = first.group_scale_bytes();
  ASSIGN_OR_RETURN(HugeBuffer data, HugeBuffer::Allocate(num_groups * bytes));
  ASSIGN_OR_RETURN(HugeBuffer scales, HugeBuffer::Allocate(num_groups * scale_bytes));
  pool.ParallelFor(num_groups, [&](int64_t g, int) {
    const int32_t group = groups[g].group;
    std::memcpy(data.data() + g * bytes, weights[g]->group_data(group), bytes);
    if (scale_bytes == 0) return;
    std::memcpy(scales.data() + g * scale_bytes, weights[g]->group_scales(group), scale_bytes);
  });
  return std::make_unique<CpuWeight>(static_cast<int32_t>(num_groups), first.n(), first.k(),
                                     first.use(), first.input(), first.format(), std::move(data),
                                     std::move(scales));
}

}  // namespace jevons
