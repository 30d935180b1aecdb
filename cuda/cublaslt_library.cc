#include "cuda/cublaslt_library.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "absl/strings/str_cat.h"

namespace jevons::cuda {
namespace {

constexpr char kToolkitFolder[] = "/usr/local/cuda/lib64/";

// The library path first; toolkits are often beside it.
void* Open(const std::string& name) {
  void* const handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  return handle != nullptr
             ? handle
             : dlopen(absl::StrCat(kToolkitFolder, name).c_str(), RTLD_NOW | RTLD_LOCAL);
}

}  // namespace

absl::StatusOr<CublasLtLibrary> LoadCublasLt() {
  const std::string name = absl::StrCat("libcublasLt.so.", CUDART_VERSION / 1000);
  void* const handle = Open(name);
  if (handle == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cuBLASLt: ", name, " is not on the library path, nor in ", kToolkitFolder));
  }
  CublasLtLibrary out;
  std::string missing;
  const auto find = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, symbol));
    if (function == nullptr) missing = symbol;
  };
  find(out.create, "cublasLtCreate");
  find(out.destroy, "cublasLtDestroy");
  find(out.desc_create, "cublasLtMatmulDescCreate");
  find(out.desc_destroy, "cublasLtMatmulDescDestroy");
  find(out.desc_set, "cublasLtMatmulDescSetAttribute");
  find(out.layout_create, "cublasLtMatrixLayoutCreate");
  find(out.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(out.preference_create, "cublasLtMatmulPreferenceCreate");
  find(out.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(out.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(out.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(out.matmul, "cublasLtMatmul");
  find(out.status_name, "cublasLtGetStatusName");
  if (missing.empty()) return out;
  return absl::UnavailableError(absl::StrCat("cuBLASLt: ", name, " lacks ", missing));
}

}  // namespace jevons::cuda
