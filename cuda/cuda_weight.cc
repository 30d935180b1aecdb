#include "cuda/cuda_weight.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_backend_impl.h"
#include "cuda/cuda_error.h"
#include "cuda/pack.h"

namespace jevons::cuda {
namespace {

RawElement RawElementOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return RawElement::kF32;
    case DType::kF16:
      return RawElement::kF16;
    case DType::kF8E4M3:
      return RawElement::kE4m3;
    default:
      return RawElement::kBf16;
  }
}

// Raw rows go over in pieces of about so many bytes: the scratch for them is never large.
constexpr int64_t kPieceBytes = 32 << 20;
constexpr int64_t kScaleBlock = 128;

// Eight values at a time: a byte is NaN where its lower seven bits are all set.
bool HasNan(const TensorView& f8) {
  const uint8_t* values = f8.ptr<uint8_t>();
  const int64_t count = f8.num_elements();
  uint64_t found = 0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t eight = 0;
    std::memcpy(&eight, values + i, sizeof(eight));
    found |= (eight & 0x7F7F7F7F7F7F7F7F) + 0x0101010101010101;
  }
  for (; i < count; ++i) found |= (values[i] & 0x7Fu) + 1u;
  return (found & 0x8080808080808080) != 0;
}

}  // namespace

int64_t PackScratchBytes() { return kPieceBytes + kPieceBytes / kScaleBlock; }

PackedLayout ChooseLayout(const WeightSpec& spec) {
  PackedLayout layout;
  layout.k = static_cast<int32_t>(spec.groups[0][0].data.dim(1));
  for (const WeightPart& part : spec.groups[0]) layout.n += static_cast<int32_t>(part.data.dim(0));
  layout.order = spec.use == WeightUse::kGateUp ? RowOrder::kPaired : RowOrder::kPlain;
  for (const std::vector<WeightPart>& parts : spec.groups) {
    int32_t row_offset = 0;
    for (const WeightPart& part : parts) {
      if (part.data.dtype != DType::kF8E4M3 || !PackKeepsE4m3(layout, row_offset)) return layout;
      row_offset += static_cast<int32_t>(part.data.dim(0));
    }
  }
  layout.format = WeightFormat::kE4m3;
  return layout;
}

absl::StatusOr<std::unique_ptr<Weight>> CudaBackend::PackWeight(const WeightSpec& spec) {
  RETURN_IF_ERROR(Validate(spec));
  const PackedLayout layout = ChooseLayout(spec);
  const int32_t num_groups = static_cast<int32_t>(spec.groups.size());
  const auto zeroed = [&](int64_t bytes) -> absl::StatusOr<std::unique_ptr<DeviceBuffer>> {
    ASSIGN_OR_RETURN(std::unique_ptr<DeviceBuffer> buffer, DeviceBuffer::Allocate(bytes));
    RETURN_IF_ERROR(ToStatus(
        cudaMemsetAsync(buffer->data(), 0, static_cast<size_t>(bytes), stream_), "PackWeight"));
    return buffer;
  };
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceBuffer> values, zeroed(num_groups * PackedBytes(layout)));
  std::unique_ptr<DeviceBuffer> scales;
  if (layout.format == WeightFormat::kE4m3) {
    ASSIGN_OR_RETURN(scales, zeroed(num_groups * ScaleBytes(layout)));
  }
  for (int32_t g = 0; g < num_groups; ++g) {
    PackParams p;
    p.layout = layout;
    p.values = values->ptr<char>() + g * PackedBytes(layout);
    if (scales != nullptr) {
      p.scales = reinterpret_cast<float*>(scales->ptr<char>() + g * ScaleBytes(layout));
    }
    for (const WeightPart& part : spec.groups[g]) {
      if (part.data.dtype == DType::kF8E4M3 && HasNan(part.data)) {
        return absl::InvalidArgumentError(
            absl::StrCat("PackWeight: group ", g, " must hold numbers, got an f8 NaN"));
      }
      RETURN_IF_ERROR(PackPart(part, p));
      p.row_offset += static_cast<int32_t>(part.data.dim(0));
    }
  }
  return std::make_unique<CudaWeight>(num_groups, spec.use, spec.input, layout, std::move(values),
                                      std::move(scales));
}

absl::Status CudaBackend::CopyWeight(const Weight& from, Weight& to) {
  const auto& source = static_cast<const CudaWeight&>(from);
  const auto& target = static_cast<const CudaWeight&>(to);
  const PackedLayout& a = source.layout();
  const PackedLayout& b = target.layout();
  if (from.num_groups() != to.num_groups() || a.n != b.n || a.k != b.k || a.order != b.order ||
      a.format != b.format || from.input() != to.input()) {
    return absl::InvalidArgumentError(
        absl::StrCat("CopyWeight: from must be packed as to, ", to.num_groups(), " groups of ", b.n,
                     " x ", b.k, " in ", to.bytes(), " bytes, got ", from.num_groups(), " of ", a.n,
                     " x ", a.k, " in ", from.bytes()));
  }
  const auto copy = [this](void* target, const void* source, int64_t bytes) {
    return ToStatus(cudaMemcpyAsync(target, source, static_cast<size_t>(bytes),
                                    cudaMemcpyDeviceToDevice, stream_),
                    "CopyWeight");
  };
  RETURN_IF_ERROR(copy(target.data(), source.data(), from.num_groups() * PackedBytes(a)));
  if (source.scales() == nullptr) return absl::OkStatus();
  return copy(target.scales(), source.scales(), from.num_groups() * ScaleBytes(a));
}

absl::Status CudaBackend::PackPart(const WeightPart& part, PackParams params) {
  const int64_t row_bytes = part.data.dim(1) * DTypeBytes(part.data.dtype);
  const int64_t piece_rows =
      std::max<int64_t>(kPieceBytes / row_bytes / kScaleBlock, 1) * kScaleBlock;
  // Scales of a piece lie behind its rows, where a float may lie.
  const int64_t scale_row_bytes = part.scale.present() ? part.scale.dim(1) * 4 : 0;
  const int64_t scale_offset = (piece_rows * row_bytes + 15) / 16 * 16;
  RETURN_IF_ERROR(Reserve(raw_rows_, scale_offset + piece_rows / kScaleBlock * scale_row_bytes));
  params.data = raw_rows_->data();
  params.element = RawElementOf(part.data.dtype);
  char* scale = raw_rows_->ptr<char>() + scale_offset;
  if (part.scale.present()) params.scale = reinterpret_cast<const float*>(scale);
  for (int64_t row = 0; row < part.data.dim(0); row += piece_rows) {
    const int64_t rows = std::min(piece_rows, part.data.dim(0) - row);
    RETURN_IF_ERROR(uploads_.Copy(raw_rows_->data(), part.data.ptr<char>() + row * row_bytes,
                                  rows * row_bytes, stream_));
    if (part.scale.present()) {
      const int64_t first = row / kScaleBlock;
      const int64_t count = (rows + kScaleBlock - 1) / kScaleBlock;
      RETURN_IF_ERROR(uploads_.Copy(scale, part.scale.ptr<char>() + first * scale_row_bytes,
                                    count * scale_row_bytes, stream_));
    }
    params.rows = static_cast<int32_t>(rows);
    RETURN_IF_ERROR(ToStatus(LaunchPack(params, stream_),
                             absl::StrCat("PackWeight of ", part.data.ToString())));
    params.row_offset += static_cast<int32_t>(rows);
  }
  return absl::OkStatus();
}

}  // namespace jevons::cuda
