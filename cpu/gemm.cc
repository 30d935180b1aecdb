#include "cpu/gemm.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "cpu/scratch.h"
#include "ops/fp8_entry.h"

namespace jevons::fast {
namespace {

// Weights of a task: long enough to stream, short enough that all threads end together.
constexpr int64_t kTaskBytes = 128 << 10;
// Weights times rows of the smallest task: less is done before another thread has heard of it.
constexpr int64_t kMinTaskBytes = 32 << 10;
// With several tiles of rows, panels that share one reading of x.
constexpr int64_t kTaskPanels = 4;
constexpr int64_t kTasksPerThread = 8;
// Bounds of the packed rows, so of the memory that a long prompt takes.
constexpr int64_t kMaxPartRows = 1536;
constexpr int64_t kMaxPackedFloats = int64_t{16} << 20;
// Fewer are packed at once by the calling thread.
constexpr int64_t kMinParallelFloats = 32 << 10;

absl::StatusOr<const CpuWeight*> OwnWeight(std::string_view op, const Weight* weight) {
  const auto* own = dynamic_cast<const CpuWeight*>(weight);
  if (own != nullptr) return own;
  return absl::InvalidArgumentError(
      absl::StrCat(absl::string_view(op.data(), op.size()),
                   ": weight must be packed by this backend, got another's"));
}

// The rows of a tile as FP8 keeps them, in memory of this thread.
void RoundRows(std::array<const float*, kMaxTileRows>& rows, int64_t num_rows, int64_t k) {
  thread_local Scratch scratch;
  float* const rounded = scratch.Get(num_rows * k);
  for (int64_t r = 0; r < num_rows; ++r) {
    RoundToFp8(rows[r], k, rounded + r * k);
    rows[r] = rounded + r * k;
  }
}

// Which interval of a prefix sum holds `i`.
int64_t FindInterval(const std::vector<int64_t>& cu, int64_t i) {
  return std::upper_bound(cu.begin(), cu.end(), i) - cu.begin() - 1;
}

}  // namespace

void Gemm::AddPart(Part part) {
  while (part.num_rows > kMaxPartRows) {
    Part head = part;
    head.num_rows = kMaxPartRows;
    parts_.push_back(head);
    if (part.row_idx != nullptr) {
      part.row_idx += kMaxPartRows;
    } else {
      part.x += kMaxPartRows * part.x_stride;
    }
    part.out += kMaxPartRows * part.out_stride;
    part.num_rows -= kMaxPartRows;
  }
  if (part.num_rows > 0) parts_.push_back(part);
}

// Parts [begin, end) to packed_, in order.
void Gemm::PackRows(int64_t begin, int64_t end, int64_t k, ThreadPool& pool) {
  const int64_t first_row = cu_rows_[begin];
  const int64_t first_tile = cu_tiles_[begin];
  const auto pack = [&](int64_t task, int) {
    const int64_t index = FindInterval(cu_tiles_, first_tile + task);
    const Part& part = parts_[index];
    if (part.num_rows == 1 && !rounds_to_fp8_) return;  // read where it is
    const RowTiles tiles(part.num_rows, kernels_.max_tile_rows);
    const int64_t tile = first_tile + task - cu_tiles_[index];
    std::array<const float*, kMaxTileRows> rows;
    for (int64_t r = 0; r < tiles.Count(tile); ++r) rows[r] = part.row(tiles.Begin(tile) + r);
    if (rounds_to_fp8_) RoundRows(rows, tiles.Count(tile), k);
    auto* out = reinterpret_cast<float*>(packed_.data()) +
                (cu_rows_[index] + tiles.Begin(tile) - first_row) * k;
    kernels_.pack_tile(rows.data(), tiles.Count(tile), k, out);
  };
  const int64_t num_tasks = cu_tiles_[end] - first_tile;
  if ((cu_rows_[end] - first_row) * k >= kMinParallelFloats) {
    pool.ParallelFor(num_tasks, pack);
  } else {
    for (int64_t task = 0; task < num_tasks; ++task) pack(task, 0);
  }
}

void Gemm::Multiply(const CpuWeight& weight, int64_t begin, int64_t end, ThreadPool& pool) {
  const int64_t num_panels = weight.num_panels();
  const int64_t num_parts = end - begin;
  const int64_t mean_rows = (cu_rows_[end] - cu_rows_[begin]) / num_parts;
  const bool one_tile = cu_tiles_[end] - cu_tiles_[begin] == num_parts;
  const int64_t largest = std::max(kTaskBytes / weight.panel_bytes(), one_tile ? 1 : kTaskPanels);
  const int64_t smallest = kMinTaskBytes / (weight.panel_bytes() * mean_rows);
  const int64_t share = num_panels * num_parts / (kTasksPerThread * pool.num_threads());
  const int64_t task_panels = std::max(std::clamp(share, int64_t{1}, largest), smallest);
  const int64_t part_tasks = (num_panels + task_panels - 1) / task_panels;

  pool.ParallelFor(num_parts * part_tasks, [&](int64_t task, int) {
    const int64_t index = begin + task / part_tasks;
    const Part& part = parts_[index];
    PanelProduct product;
    product.format = weight.format();
    product.n = weight.n();
    product.k = weight.k();
    product.weights = weight.group_data(part.group);
    if (product.format == WeightFormat::kF8) product.scales = weight.group_scales(part.group);
    product.x = part.num_rows == 1 && !rounds_to_fp8_
                    ? part.row(0)
                    : reinterpret_cast<const float*>(packed_.data()) +
                          (cu_rows_[index] - cu_rows_[begin]) * weight.k();
    product.num_rows = part.num_rows;
    product.out = part.out;
    product.out_stride = part.out_stride;
    product.bias = part.bias;
    const int64_t first = task % part_tasks * task_panels;
    kernels_.run_panels(product, first, std::min(first + task_panels, num_panels));
  });
}

absl::Status Gemm::Run(const CpuWeight& weight, ThreadPool& pool) {
  kernels_ = GetGemmKernels();
  rounds_to_fp8_ = weight.input() == ActivationPrecision::kFp8;
  cu_rows_.assign(1, 0);
  cu_tiles_.assign(1, 0);
  for (const Part& part : parts_) {
    cu_rows_.push_back(cu_rows_.back() + part.num_rows);
    const RowTiles tiles(part.num_rows, kernels_.max_tile_rows);
    cu_tiles_.push_back(cu_tiles_.back() + tiles.num_tiles);
  }
  const auto num_parts = static_cast<int64_t>(parts_.size());
  for (int64_t begin = 0, end = 0; begin < num_parts; begin = end) {
    const auto floats = [&] { return (cu_rows_[end] - cu_rows_[begin]) * weight.k(); };
    end = begin + 1;
    while (end < num_parts && floats() + parts_[end].num_rows * weight.k() <= kMaxPackedFloats) {
      ++end;
    }
    if (rounds_to_fp8_ || cu_rows_[end] - cu_rows_[begin] > end - begin) {
      if (floats() * 4 > packed_.bytes()) {
        ASSIGN_OR_RETURN(packed_, HugeBuffer::Allocate(floats() * 4));
      }
      PackRows(begin, end, weight.k(), pool);
    }
    Multiply(weight, begin, end, pool);
  }
  return absl::OkStatus();
}

absl::Status Gemm::Linear(const LinearArgs& args, ThreadPool& pool) {
  ASSIGN_OR_RETURN(const CpuWeight* weight, OwnWeight("Linear", args.weight));
  parts_.clear();
  Part part;
  part.x = args.x.ptr<float>();
  part.x_stride = args.x.stride[0];
  part.num_rows = args.x.dim(0);
  part.out = args.out.ptr<float>();
  part.out_stride = args.out.stride[0];
  part.bias = args.bias.ptr<float>();
  AddPart(part);
  return Run(*weight, pool);
}

absl::Status Gemm::HeadLinear(const HeadLinearArgs& args, ThreadPool& pool) {
  ASSIGN_OR_RETURN(const CpuWeight* weight, OwnWeight("HeadLinear", args.weight));
  parts_.clear();
  for (int64_t group = 0; group < weight->num_groups(); ++group) {
    Part part;
    part.group = group;
    part.x = args.x.ptr<float>() + group * args.x.stride[1];
    part.x_stride = args.x.stride[0];
    part.num_rows = args.x.dim(0);
    part.out = args.out.ptr<float>() + group * args.out.stride[1];
    part.out_stride = args.out.stride[0];
    AddPart(part);
  }
  return Run(*weight, pool);
}

absl::Status Gemm::GroupedGemm(const GroupedGemmArgs& args, ThreadPool& pool) {
  ASSIGN_OR_RETURN(const CpuWeight* weight, OwnWeight("GroupedGemm", args.weight));
  parts_.clear();
  const int32_t* cu_rows = args.cu_rows.ptr<int32_t>();
  for (int64_t group = 0; group < weight->num_groups(); ++group) {
    Part part;
    part.group = group;
    part.x = args.x.ptr<float>();
    part.x_stride = args.x.stride[0];
    if (args.row_idx.present()) {
      part.row_idx = args.row_idx.ptr<int32_t>() + cu_rows[group];
    } else {
      part.x += cu_rows[group] * part.x_stride;
    }
    part.num_rows = cu_rows[group + 1] - cu_rows[group];
    part.out = args.out.ptr<float>() + cu_rows[group] * args.out.stride[0];
    part.out_stride = args.out.stride[0];
    AddPart(part);
  }
  return Run(*weight, pool);
}

}  // namespace jevons::fast
