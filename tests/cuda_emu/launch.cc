// Kernel launches.
#include <string>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/memory.h"
#include "tests/cuda_emu/symbol.h"

namespace jevons::emu {
namespace {

constexpr int kSmemWithoutAttribute = 48 * 1024;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxGridX = 0x7FFFFFFF;
constexpr unsigned kMaxGridYZ = 0xFFFF;
constexpr int kEarlyMajor = 9;  // from which a kernel may begin early

struct Queued {
  GridSpec spec;
  std::function<void()> body;
};

bool IsGrid(const dim3& grid) {
  return grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= kMaxGridX && grid.y <= kMaxGridYZ &&
         grid.z <= kMaxGridYZ;
}

int MajorOfDevice() {
  State& state = GetState();
  const Lock lock(state.mutex);
  return state.options.major;
}

cudaError_t CheckSmem(const void* kernel, size_t bytes) {
  State& state = GetState();
  const Lock lock(state.mutex);
  const auto found = state.max_smem.find({CurrentDevice(), kernel});
  const int limit = found == state.max_smem.end() ? kSmemWithoutAttribute : found->second;
  return bytes <= static_cast<size_t>(limit) ? cudaSuccess : cudaErrorInvalidValue;
}

// The last one counts.
bool MayBeginEarly(const cudaLaunchConfig_t& config) {
  bool early = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization) continue;
    early = config.attrs[i].val.programmaticStreamSerializationAllowed != 0;
  }
  return early;
}

cudaError_t CheckConfig(const cudaLaunchConfig_t& config, const void* kernel) {
  if (config.blockDim.y != 1 || config.blockDim.z != 1) return cudaErrorNotSupported;
  if (config.blockDim.x < 1 || config.blockDim.x > kMaxThreads || !IsGrid(config.gridDim)) {
    return cudaErrorInvalidConfiguration;
  }
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    const auto& cluster = attribute.val.clusterDim;
    if (attribute.id == cudaLaunchAttributeClusterDimension &&
        cluster.x * cluster.y * cluster.z != 1) {
      return cudaErrorNotSupported;
    }
  }
  if (MayBeginEarly(config) && MajorOfDevice() < kEarlyMajor) return cudaErrorNotSupported;
  return CheckSmem(kernel, config.dynamicSmemBytes);
}

}  // namespace

cudaError_t LaunchKernel(const cudaLaunchConfig_t& config, const void* kernel,
                         std::function<void()> thread_body) {
  const cudaError_t error = CheckConfig(config, kernel);
  if (error != cudaSuccess) return NoteError(error);
  return EnqueueKernel(config.stream,
                       GridSpec{.kernel = FunctionName(kernel),
                                .grid = config.gridDim,
                                .block = static_cast<int>(config.blockDim.x),
                                .smem_bytes = static_cast<int>(config.dynamicSmemBytes),
                                .early = MayBeginEarly(config)},
                       std::move(thread_body));
}

cudaError_t EnqueueKernel(cudaStream_t stream, GridSpec spec, std::function<void()> body) {
  return ApiCall(CallKind::kLaunch, [&](State& state, Lock&) {
    const std::shared_ptr<Stream> target = FindStream(state, stream);
    // A kernel runs on the current device.
    if (target == nullptr || target->device != CurrentDevice()) {
      return cudaErrorInvalidResourceHandle;
    }
    if (spec.block < 1 || spec.block > static_cast<int>(kMaxThreads) || !IsGrid(spec.grid)) {
      return cudaErrorInvalidConfiguration;
    }
    if (spec.smem_bytes < 0 || spec.smem_bytes > MaxSmemBytes(state.options)) {
      return cudaErrorInvalidValue;
    }
    const std::string name = "kernel " + spec.kernel;
    // Of one address for all of its runs.
    const auto launch = std::make_shared<const Queued>(Queued{std::move(spec), std::move(body)});
    Work work = {.name = name,
                 .run =
                     [name, launch](int64_t) {
                       const cudaError_t planned =
                           IsWaiting(launch->body) ? cudaSuccess
                                                   : CountCall(GetState(), CallKind::kExecution);
                       if (planned != cudaSuccess) return planned;
                       const cudaError_t error = RunGrid(launch->spec, launch->body);
                       CheckGuards(name);
                       return error;
                     },
                 .is_kernel = true};
    if (launch->spec.early) {
      work.begin = [launch] {
        const cudaError_t planned = CountCall(GetState(), CallKind::kEarly);
        return planned == cudaSuccess ? BeginGrid(launch->spec, launch->body) : planned;
      };
    }
    return Submit(state, stream, std::move(work));
  });
}

}  // namespace jevons::emu

using namespace jevons::emu;

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return ApiCall(CallKind::kLaunch, [&](State& state, Lock&) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > MaxSmemBytes(state.options)) return cudaErrorInvalidValue;
    state.max_smem[{CurrentDevice(), kernel}] = value;
    return cudaSuccess;
  });
}
