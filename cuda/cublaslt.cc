#include "cuda/cublaslt.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cuda/cublaslt_library.h"
#include "cuda/cuda_error.h"
#include "cuda/device_memory.h"
#include "cuda/pack.h"

namespace jevons::cuda {
namespace {

template <typename T>
using Owned = std::unique_ptr<T, cublasStatus_t (*)(T*)>;

// The product of some rows of the weight with all rows of x. For cuBLASLt, whose matrices have their
// columns in a row, the weight is a [k, rows], transposed, x is b [k, tokens], out is d [rows, tokens].
struct Piece {
  int32_t first_row = 0;
  void* d = nullptr;
  Owned<cublasLtMatmulDescOpaque_t> desc;
  Owned<cublasLtMatrixLayoutOpaque_t> weight, x, out;
  cublasLtMatmulHeuristicResult_t chosen = {};
  bool offered = false;
};

// Of an address; cuBLASLt tells no larger ones apart.
uint32_t AlignmentOf(const void* data) {
  const auto all = reinterpret_cast<uintptr_t>(data) | 256;
  return static_cast<uint32_t>(all & (~all + 1));
}

cudaDataType_t TypeOf(Element element) {
  return element == Element::kF32 ? CUDA_R_32F : CUDA_R_16BF;
}

class LoadedCublasLt : public CublasLt {
 public:
  explicit LoadedCublasLt(const CublasLtLibrary& lib) : lib_(lib) {}
  ~LoadedCublasLt() override {
    if (handle_ != nullptr) lib_.destroy(handle_);
  }
  LoadedCublasLt(const LoadedCublasLt&) = delete;
  LoadedCublasLt& operator=(const LoadedCublasLt&) = delete;

  absl::Status Init(int64_t unpacked_bytes) {
    RETURN_IF_ERROR(Check(lib_.create(&handle_), "its handle"));
    ASSIGN_OR_RETURN(unpacked_, DeviceBuffer::Allocate(unpacked_bytes));
    ASSIGN_OR_RETURN(workspace_, DeviceBuffer::Allocate(kCublasLtWorkspaceBytes));
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Multiply(const GemmParams& p, int32_t unpacked_rows,
                                cudaStream_t stream) override {
    std::vector<Piece> pieces;
    for (int32_t row = 0; row < p.layout.n; row += unpacked_rows) {
      ASSIGN_OR_RETURN(Piece piece, Prepare(p, row, std::min(unpacked_rows, p.layout.n - row)));
      if (!piece.offered) return false;
      pieces.push_back(std::move(piece));
    }
    for (const Piece& piece : pieces) {
      const UnpackParams unpack = {
          .layout = p.layout,
          .values = p.weight,
          .first_row = piece.first_row,
          .rows = std::min(unpacked_rows, PaddedRows(p.layout) - piece.first_row),
          .out = unpacked_->data()};
      RETURN_IF_ERROR(ToStatus(LaunchUnpack(unpack, stream), Name(p)));
      RETURN_IF_ERROR(Queue(p, piece, stream));
    }
    return true;
  }

 private:
  static std::string Name(const GemmParams& p) {
    return absl::StrCat("product of ", p.num_rows, " rows with ", p.layout.n, " x ", p.layout.k);
  }

  absl::Status Check(cublasStatus_t status, const std::string& what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    const std::string text = absl::StrCat("cuBLASLt, ", what, ": ", lib_.status_name(status));
    if (status == CUBLAS_STATUS_ALLOC_FAILED) return absl::ResourceExhaustedError(text);
    return absl::InternalError(text);
  }

  template <typename T>
  absl::Status Set(const Piece& piece, cublasLtMatmulDescAttributes_t name, const T& value) const {
    return Check(lib_.desc_set(piece.desc.get(), name, &value, sizeof(value)), "an attribute");
  }

  absl::StatusOr<Owned<cublasLtMatrixLayoutOpaque_t>> Layout(cudaDataType_t type, int64_t rows,
                                                             int64_t columns,
                                                             int64_t stride) const {
    cublasLtMatrixLayout_t layout = nullptr;
    RETURN_IF_ERROR(Check(lib_.layout_create(&layout, type, static_cast<uint64_t>(rows),
                                             static_cast<uint64_t>(columns), stride),
                          "a matrix"));
    return Owned<cublasLtMatrixLayoutOpaque_t>(layout, lib_.layout_destroy);
  }

  absl::StatusOr<Piece> Prepare(const GemmParams& p, int32_t first_row, int32_t rows) const {
    cublasLtMatmulDesc_t desc = nullptr;
    RETURN_IF_ERROR(Check(lib_.desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), Name(p)));
    const int64_t element = p.out_type == Element::kF32 ? 4 : 2;
    Piece out = {.first_row = first_row,
                 .d = static_cast<char*>(p.out) + first_row * element,
                 .desc = {desc, lib_.desc_destroy},
                 .weight = {nullptr, lib_.layout_destroy},
                 .x = {nullptr, lib_.layout_destroy},
                 .out = {nullptr, lib_.layout_destroy}};
    RETURN_IF_ERROR(Set(out, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
    if (p.bias != nullptr) {
      RETURN_IF_ERROR(Set(out, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS));
      RETURN_IF_ERROR(Set(out, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t{CUDA_R_32F}));
      RETURN_IF_ERROR(Set(out, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias + first_row));
    }
    ASSIGN_OR_RETURN(out.weight, Layout(CUDA_R_16BF, p.layout.k, rows, PaddedColumns(p.layout)));
    ASSIGN_OR_RETURN(out.x, Layout(CUDA_R_16BF, p.layout.k, p.num_rows, p.x_row_stride));
    ASSIGN_OR_RETURN(out.out, Layout(TypeOf(p.out_type), rows, p.num_rows, p.out_row_stride));
    RETURN_IF_ERROR(Choose(p, out));
    return out;
  }

  absl::StatusOr<Owned<cublasLtMatmulPreferenceOpaque_t>> Preference(const GemmParams& p,
                                                                     const Piece& piece) const {
    cublasLtMatmulPreference_t made = nullptr;
    RETURN_IF_ERROR(Check(lib_.preference_create(&made), "a preference"));
    Owned<cublasLtMatmulPreferenceOpaque_t> out(made, lib_.preference_destroy);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
      return Check(lib_.preference_set(made, name, &value, sizeof(value)), "a preference");
    };
    RETURN_IF_ERROR(
        set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kCublasLtWorkspaceBytes}));
    // Partial sums stay f32, whatever the output is.
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                        uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE}));
    // It takes 256 bytes for granted.
    const uint32_t of_x = AlignmentOf(p.x);
    const uint32_t of_out = AlignmentOf(piece.d);
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_x));
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_out));
    RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_out));
    return out;
  }

  absl::Status Choose(const GemmParams& p, Piece& piece) const {
    ASSIGN_OR_RETURN(const auto preference, Preference(p, piece));
    int num_found = 0;
    const cublasStatus_t status = lib_.heuristic(handle_, piece.desc.get(), piece.weight.get(),
                                                 piece.x.get(), piece.out.get(), piece.out.get(),
                                                 preference.get(), 1, &piece.chosen, &num_found);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) return absl::OkStatus();
    RETURN_IF_ERROR(Check(status, absl::StrCat("choice for a ", Name(p))));
    piece.offered = num_found > 0 && piece.chosen.state == CUBLAS_STATUS_SUCCESS;
    return absl::OkStatus();
  }

  // The piece's rows of the weight lie unpacked.
  absl::Status Queue(const GemmParams& p, const Piece& piece, cudaStream_t stream) const {
    const float one = 1;
    const float zero = 0;
    return Check(
        lib_.matmul(handle_, piece.desc.get(), &one, unpacked_->data(), piece.weight.get(), p.x,
                    piece.x.get(), &zero, piece.d, piece.out.get(), piece.d, piece.out.get(),
                    &piece.chosen.algo, workspace_->data(), kCublasLtWorkspaceBytes, stream),
        Name(p));
  }

  const CublasLtLibrary lib_;
  cublasLtHandle_t handle_ = nullptr;
  std::unique_ptr<DeviceBuffer> unpacked_;
  std::unique_ptr<DeviceBuffer> workspace_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLt>> CreateCublasLt(int64_t unpacked_bytes) {
  ASSIGN_OR_RETURN(const CublasLtLibrary library, LoadCublasLt());
  auto out = std::make_unique<LoadedCublasLt>(library);
  RETURN_IF_ERROR(out->Init(unpacked_bytes));
  return out;
}

}  // namespace jevons::cuda
