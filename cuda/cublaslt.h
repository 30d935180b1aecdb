// Dense products of many rows by cuBLASLt, for a backend that is told to (CudaBackendOptions): its
// kernels may be faster than ours, and the order of their sums follows the number of rows. It cannot
// read operand fragments, so some rows of a weight after the other are unpacked into scratch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "cuda/gemm.h"

namespace jevons::cuda {

// Scratch for unpacked rows. Large enough that the piece of a weight fills a device: 2,048 rows of
// V3's output projection, 256 tiles of 128 x 128 with 2,048 tokens. A guess, to be measured.
inline constexpr int64_t kUnpackedBytes = 64 << 20;
// What cuBLASLt wants on sm_90 to choose among all that it has.
inline constexpr int64_t kCublasLtWorkspaceBytes = 32 << 20;
inline constexpr int64_t kCublasLtBytes = kUnpackedBytes + kCublasLtWorkspaceBytes;

// Rows of the weight, padded ones among them, that cuBLASLt multiplies at once, a multiple of
// kStripRows; 0: the product is for our kernel, as are all of fewer than `least_rows` rows. e4m3 stays
// with it, whose scales bf16 would have to round, and so do groups, gathered rows, gate and up, and
// a bias that is added to bf16, which cuBLASLt wants in bf16.
constexpr int32_t ChooseUnpackedRows(const GemmParams& p, int32_t least_rows,
                                     int64_t unpacked_bytes) {
  const bool dense = p.num_groups == 1 && p.cu_rows == nullptr && p.row_idx == nullptr &&
                     p.epilogue == GemmEpilogue::kStore && p.layout.order == RowOrder::kPlain;
  const bool types =
      p.layout.format == WeightFormat::kBf16 &&
      (p.out_type == Element::kF32 || (p.out_type == Element::kBF16 && p.bias == nullptr));
  if (!dense || !types || least_rows < 1 || p.num_rows < least_rows) return 0;
  const int32_t all = PaddedRows(p.layout);
  const int64_t fit = unpacked_bytes / (int64_t{2} * PaddedColumns(p.layout));
  // Whole tiles of any size, where there are several pieces.
  constexpr int32_t kUnit = 256;
  return fit >= all ? all : static_cast<int32_t>(fit / kUnit * kUnit);
}

// Used by one thread at a time, with one stream.
class CublasLt {
 public:
  virtual ~CublasLt() = default;

  // Queues the product, whose ChooseUnpackedRows is `unpacked_rows`. false: cuBLASLt offers none, and
  // nothing is queued. Sums are f32, but may be one chain over k: terms of one sign err more than
  // kGemmTolerance says where k is large. May be called while the stream is recorded: the choice of an algorithm is
  // work of the host alone, and what was chosen is kept by the recording and not by this object.
  virtual absl::StatusOr<bool> Multiply(const GemmParams& params, int32_t unpacked_rows,
                                        cudaStream_t stream) = 0;
};

// Takes `unpacked_bytes` and the workspace. UNAVAILABLE where the library is not on this machine,
// UNIMPLEMENTED in a build without its header.
absl::StatusOr<std::unique_ptr<CublasLt>> CreateCublasLt(int64_t unpacked_bytes = kUnpackedBytes);

}  // namespace jevons::cuda
