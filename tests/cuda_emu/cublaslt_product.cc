#include "tests/cuda_emu/cublaslt_product.h"

#include <cstring>
#include <string>

#include "cuda/device/numeric.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/memory.h"

namespace jevons::emu {
namespace {

float Bf16At(const char* data, int64_t index) {
  device::Bf16 value;
  std::memcpy(&value, data + 2 * index, sizeof(value));
  return device::ToFloat(value);
}

cublasStatus_t Misuse(const std::string& text) {
  ReportMisuse("cuBLASLt: " + text);
  return CUBLAS_STATUS_INVALID_VALUE;
}

bool IsSound(const Layout& l) { return l.rows > 0 && l.columns > 0 && l.stride >= l.rows; }

}  // namespace

uint64_t HashOf(const Problem& p) {
  uint64_t hash = p.has_bias;
  for (const Layout* l : {&p.a, &p.b, &p.c, &p.d}) {
    for (const int64_t value : {int64_t{l->type}, l->rows, l->columns, l->stride}) {
      hash = (hash ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15u;
    }
  }
  return hash;
}

cublasStatus_t CheckProblem(const Desc& desc, const Problem& p) {
  const bool fits =
      p.a.rows == p.b.rows && p.a.columns == p.d.rows && p.b.columns == p.d.columns && p.c == p.d;
  for (const Layout* l : {&p.a, &p.b, &p.c, &p.d}) {
    if (!IsSound(*l)) return Misuse("a matrix whose columns overlap, or of no size");
  }
  if (!fits) return Misuse("matrices that do not fit together");
  const bool types = p.a.type == CUDA_R_16BF && p.b.type == CUDA_R_16BF &&
                     (p.d.type == CUDA_R_16BF || p.d.type == CUDA_R_32F) &&
                     desc.compute == CUBLAS_COMPUTE_32F && desc.scale == CUDA_R_32F;
  const bool transposed = desc.transposes_a == CUBLAS_OP_T && desc.transposes_b == CUBLAS_OP_N;
  // A bias has the type of d, unless it says otherwise; bf16 takes no other.
  const bool bias = !p.has_bias || (p.d.type == CUDA_R_32F &&
                                    (desc.bias_type == -1 || desc.bias_type == CUDA_R_32F));
  return types && transposed && bias ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t Product::CheckAlgorithm(size_t workspace_bytes) const {
  if (algorithm.problem != HashOf(problem)) {
    return Misuse("an algorithm that was chosen for another product");
  }
  if (algorithm.workspace > workspace_bytes) return Misuse("a workspace that is too small");
  const void* const data[] = {a, b, d, d};
  for (int i = 0; i < 4; ++i) {
    if (reinterpret_cast<uintptr_t>(data[i]) % algorithm.alignment[i] != 0) {
      return Misuse("a matrix that is less aligned than was said at the choice");
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

bool Product::LiesIn(const void* data, int64_t bytes, const char* what) const {
  const Allocation* const found = FindAllocation(data);
  if (found != nullptr && found->device == device && LiesWhole(data, bytes)) return true;
  Misuse(std::string(what) + " is not within one allocation of the handle's device");
  return false;
}

bool Product::AllLieIn() const {
  const Problem& p = problem;
  const auto parts = static_cast<int64_t>(algorithm.workspace);
  return LiesIn(a, p.a.bytes(), "a") && LiesIn(b, p.b.bytes(), "b") &&
         LiesIn(d, p.d.bytes(), "d") && (!p.has_bias || LiesIn(bias, p.d.rows * 4, "the bias")) &&
         (parts == 0 || LiesIn(workspace, parts, "the workspace"));
}

float Product::Part(int64_t row, int64_t column, int64_t begin, int64_t end) const {
  float sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    sum += Bf16At(a, row * problem.a.stride + i) * Bf16At(b, column * problem.b.stride + i);
  }
  return algorithm.rounds_parts != 0 ? device::ToFloat(device::ToBf16(sum)) : sum;
}

void Product::Store(int64_t row, int64_t column, float value) const {
  char* const to = d + (column * problem.d.stride + row) * problem.d.element();
  if (problem.d.type == CUDA_R_32F) {
    std::memcpy(to, &value, sizeof(value));
  } else {
    const device::Bf16 low = device::ToBf16(value);
    std::memcpy(to, &low, sizeof(low));
  }
}

void Product::Run() const {
  const int64_t parts = algorithm.num_parts;
  const int64_t k = problem.a.rows;
  for (int64_t column = 0; column < problem.d.columns; ++column) {
    for (int64_t row = 0; row < problem.d.rows; ++row) {
      float sum = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const float value = Part(row, column, part * k / parts, (part + 1) * k / parts);
        if (parts > 1) workspace[part] = value;
        sum += value;
      }
      Store(row, column, problem.has_bias ? sum + bias[row] : sum);
    }
  }
}

}  // namespace jevons::emu
