#include <cublasLt.h>

#include <cstring>

#include "tests/cuda_emu/cublaslt_plan.h"
#include "tests/cuda_emu/cublaslt_product.h"
#include "tests/cuda_emu/stream.h"

namespace jevons::emu {
namespace {

struct Context {
  int device = 0;
};

struct Preference {
  uint64_t workspace = 0;
  uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint32_t alignment[4] = {256, 256, 256, 256};  // of a, b, c, d
};

struct CublasLt {
  Table<cublasLtHandle_t, Context> handles;
  Table<cublasLtMatmulDesc_t, Desc> descs;
  Table<cublasLtMatrixLayout_t, Layout> layouts;
  Table<cublasLtMatmulPreference_t, Preference> preferences;
  int64_t num_calls = 0;
  int64_t num_products = 0;
  int64_t fail_at = 0;  // 0: none
  cublasStatus_t fail_with = CUBLAS_STATUS_SUCCESS;
  int64_t refused_columns = 0;
};
CublasLt& GetCublasLt() {
  static CublasLt* const lib = new CublasLt;
  return *lib;
}

// A call that may fail: body(state, lib) runs unless a failure is planned.
template <typename Body>
cublasStatus_t Call(Body body) {
  State& state = GetState();
  const Lock lock(state.mutex);
  CublasLt& lib = GetCublasLt();
  if (++lib.num_calls == lib.fail_at) return lib.fail_with;
  return body(state, lib);
}

// A call that releases something.
template <typename Body>
cublasStatus_t Release(Body body) {
  const Lock lock(GetState().mutex);
  return body(GetCublasLt()) != nullptr ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

template <typename T>
cublasStatus_t Take(T& field, const void* value, size_t bytes) {
  if (value == nullptr || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

// The four matrices by their handles.
bool FindProblem(CublasLt& lib, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                 cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                 Problem& out) {
  const std::shared_ptr<Desc> found = lib.descs.Find(desc);
  if (found == nullptr) return false;
  out.has_bias = found->epilogue == CUBLASLT_EPILOGUE_BIAS;
  const std::pair<cublasLtMatrixLayout_t, Layout*> all[] = {
      {a, &out.a}, {b, &out.b}, {c, &out.c}, {d, &out.d}};
  for (const auto& [handle, layout] : all) {
    const std::shared_ptr<Layout> known = lib.layouts.Find(handle);
    if (known == nullptr) return false;
    *layout = *known;
  }
  return true;
}

cublasStatus_t Queue(State& state, cudaStream_t handle, const Product& product) {
  const std::shared_ptr<Stream> stream = FindStream(state, handle);
  if (stream == nullptr || stream->device != product.device) return CUBLAS_STATUS_INVALID_VALUE;
  if (state.devices[product.device].sticky != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  const auto run = [product](int64_t) {
    if (!product.AllLieIn()) return cudaErrorIllegalAddress;
    product.Run();
    return cudaSuccess;
  };
  // A kernel behind it that may begin early does so: nobody says when the library lets it.
  const cudaError_t error =
      Submit(state, handle, {.name = "a product of cuBLASLt", .run = run, .is_kernel = true});
  if (error == cudaSuccess) return CUBLAS_STATUS_SUCCESS;
  NoteError(error);
  return CUBLAS_STATUS_EXECUTION_FAILED;
}

template <typename Body>
void ChangePlan(Body body) {
  const Lock lock(GetState().mutex);
  body(GetCublasLt());
}

}  // namespace

void FailNthCublasLtCall(int64_t n, cublasStatus_t status) {
  ChangePlan([&](CublasLt& lib) {
    lib.fail_at = lib.num_calls + n;
    lib.fail_with = status;
  });
}

int64_t NumCublasLtCalls() {
  const Lock lock(GetState().mutex);
  return GetCublasLt().num_calls;
}

int64_t NumCublasLtProducts() {
  const Lock lock(GetState().mutex);
  return GetCublasLt().num_products;
}

int64_t OutstandingCublasLt() {
  const Lock lock(GetState().mutex);
  const CublasLt& lib = GetCublasLt();
  return lib.handles.size() + lib.descs.size() + lib.layouts.size() + lib.preferences.size();
}

void RefuseCublasLt(int64_t columns) {
  ChangePlan([&](CublasLt& lib) { lib.refused_columns = columns; });
}

void ResetCublasLt() {
  ChangePlan([](CublasLt& lib) {
    lib.num_calls = lib.num_products = lib.fail_at = lib.refused_columns = 0;
  });
}

}  // namespace jevons::emu

using namespace jevons::emu;

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "an unknown status";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return Call([&](State&, CublasLt& lib) {
    *handle = lib.handles.Add(std::make_shared<Context>(Context{CurrentDevice()}));
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return Release([&](CublasLt& lib) { return lib.handles.Remove(handle); });
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  return Call([&](State&, CublasLt& lib) {
    *desc = lib.descs.Add(std::make_shared<Desc>(Desc{.compute = compute, .scale = scale}));
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  return Release([&](CublasLt& lib) { return lib.descs.Remove(desc); });
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle,
                                              cublasLtMatmulDescAttributes_t name,
                                              const void* value, size_t bytes) {
  return Call([&](State&, CublasLt& lib) {
    const std::shared_ptr<Desc> desc = lib.descs.Find(handle);
    if (desc == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
    switch (name) {
      case CUBLASLT_MATMUL_DESC_TRANSA:
        return Take(desc->transposes_a, value, bytes);
      case CUBLASLT_MATMUL_DESC_TRANSB:
        return Take(desc->transposes_b, value, bytes);
      case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return Take(desc->epilogue, value, bytes);
      case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return Take(desc->bias, value, bytes);
      case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return Take(desc->bias_type, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
  });
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
  return Call([&](State&, CublasLt& lib) {
    *layout = lib.layouts.Add(std::make_shared<Layout>(
        Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(columns), stride}));
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return Release([&](CublasLt& lib) { return lib.layouts.Remove(layout); });
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return Call([&](State&, CublasLt& lib) {
    *preference = lib.preferences.Add(std::make_shared<Preference>());
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return Release([&](CublasLt& lib) { return lib.preferences.Remove(preference); });
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void* value, size_t bytes) {
  return Call([&](State&, CublasLt& lib) {
    const std::shared_ptr<Preference> preference = lib.preferences.Find(handle);
    if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
    switch (name) {
      case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return Take(preference->workspace, value, bytes);
      case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return Take(preference->schemes, value, bytes);
      default:
        return Take(preference->alignment[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value,
                    bytes);
    }
  });
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference_handle,
                                              int num_wanted,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* num_found) {
  return Call([&](State&, CublasLt& lib) {
    *num_found = 0;
    Problem problem;
    const std::shared_ptr<Preference> preference = lib.preferences.Find(preference_handle);
    if (lib.handles.Find(handle) == nullptr || preference == nullptr || num_wanted < 1 ||
        !FindProblem(lib, desc, a, b, c, d, problem)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    const cublasStatus_t status = CheckProblem(*lib.descs.Find(desc), problem);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (problem.d.columns == lib.refused_columns) return CUBLAS_STATUS_NOT_SUPPORTED;
    Algorithm algorithm = {.problem = HashOf(problem)};
    std::memcpy(algorithm.alignment, preference->alignment, sizeof(algorithm.alignment));
    const auto parts = static_cast<uint64_t>(problem.num_parts(problem.a.rows));
    constexpr uint32_t kOutput = CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    constexpr uint32_t kCompute = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    if ((preference->schemes & (kOutput | kCompute)) != 0 && 4 * parts <= preference->workspace) {
      algorithm.num_parts = static_cast<uint32_t>(parts);
      algorithm.workspace = parts > 1 ? 4 * parts : 0;
      algorithm.rounds_parts =
          problem.d.type == CUDA_R_16BF && (preference->schemes & kOutput) != 0;
    }
    results[0] = {};
    std::memcpy(&results[0].algo, &algorithm, sizeof(algorithm));
    results[0].workspaceSize = algorithm.workspace;
    *num_found = 1;
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  return Call([&](State& state, CublasLt& lib) {
    Product product;
    product.a = static_cast<const char*>(a);
    product.b = static_cast<const char*>(b);
    product.d = static_cast<char*>(d);
    product.workspace = static_cast<float*>(workspace);
    const std::shared_ptr<Context> context = lib.handles.Find(handle);
    if (context == nullptr || algo == nullptr ||
        !FindProblem(lib, desc, a_layout, b_layout, c_layout, d_layout, product.problem)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0) {
      return CUBLAS_STATUS_NOT_SUPPORTED;  // beyond the emulator
    }
    product.device = context->device;
    product.bias = lib.descs.Find(desc)->bias;
    std::memcpy(static_cast<void*>(&product.algorithm), algo, sizeof(product.algorithm));
    const cublasStatus_t fits = product.CheckAlgorithm(workspace_bytes);
    if (fits != CUBLAS_STATUS_SUCCESS) return fits;
    if (!product.AllLieIn()) return CUBLAS_STATUS_INVALID_VALUE;
    const cublasStatus_t queued = Queue(state, stream, product);
    lib.num_products += queued == CUBLAS_STATUS_SUCCESS;
    return queued;
  });
}
