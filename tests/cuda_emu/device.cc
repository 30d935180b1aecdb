// Devices as a whole, and the names of errors.
#include <cstdio>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/memory.h"

using namespace jevons::emu;

namespace {

constexpr int kVersion = CUDART_VERSION;
constexpr int kRegisters = 65536;
constexpr int kL2Bytes = 50 << 20;

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* text;
};

#define JEVONS_EMU_ERROR(name, text) \
  { name, #name, text }
constexpr ErrorText kErrors[] = {
    JEVONS_EMU_ERROR(cudaSuccess, "no error"),
    JEVONS_EMU_ERROR(cudaErrorInvalidValue, "invalid argument"),
    JEVONS_EMU_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    JEVONS_EMU_ERROR(cudaErrorInitializationError, "initialization error"),
    JEVONS_EMU_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    JEVONS_EMU_ERROR(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    JEVONS_EMU_ERROR(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    JEVONS_EMU_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    JEVONS_EMU_ERROR(cudaErrorInvalidDeviceFunction, "invalid device function"),
    JEVONS_EMU_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    JEVONS_EMU_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    JEVONS_EMU_ERROR(cudaErrorNoKernelImageForDevice,
                     "no kernel image is available for execution on the device"),
    JEVONS_EMU_ERROR(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    JEVONS_EMU_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    JEVONS_EMU_ERROR(cudaErrorIllegalState,
                     "the operation cannot be performed in the present state"),
    JEVONS_EMU_ERROR(cudaErrorNotReady, "device not ready"),
    JEVONS_EMU_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    JEVONS_EMU_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    JEVONS_EMU_ERROR(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    JEVONS_EMU_ERROR(cudaErrorHostMemoryAlreadyRegistered,
                     "part or all of the requested memory range is already mapped"),
    JEVONS_EMU_ERROR(cudaErrorHostMemoryNotRegistered,
                     "pointer does not correspond to a registered memory region"),
    JEVONS_EMU_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    JEVONS_EMU_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    JEVONS_EMU_ERROR(cudaErrorNotPermitted, "operation not permitted"),
    JEVONS_EMU_ERROR(cudaErrorNotSupported, "operation not supported"),
    JEVONS_EMU_ERROR(cudaErrorStreamCaptureUnsupported,
                     "operation not permitted when stream is capturing"),
    JEVONS_EMU_ERROR(cudaErrorStreamCaptureInvalidated,
                     "operation failed due to a previous error during capture"),
    JEVONS_EMU_ERROR(cudaErrorStreamCaptureMerge,
                     "operation would result in a merge of separate capture sequences"),
    JEVONS_EMU_ERROR(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream"),
    JEVONS_EMU_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    JEVONS_EMU_ERROR(cudaErrorStreamCaptureIsolation,
                     "dependency created on uncaptured work in another stream"),
    JEVONS_EMU_ERROR(cudaErrorStreamCaptureImplicit,
                     "operation would make the legacy stream depend on a capturing stream"),
    JEVONS_EMU_ERROR(cudaErrorCapturedEvent,
                     "operation not permitted on an event last recorded in a capturing stream"),
    JEVONS_EMU_ERROR(cudaErrorStreamCaptureWrongThread,
                     "attempt to terminate a thread-local capture from another thread"),
    JEVONS_EMU_ERROR(cudaErrorTimeout, "wait operation timed out"),
    JEVONS_EMU_ERROR(cudaErrorInvalidClusterSize, "cluster size is not valid"),
    JEVONS_EMU_ERROR(cudaErrorUnknown, "unknown error"),
};
#undef JEVONS_EMU_ERROR

const ErrorText* FindError(cudaError_t error) {
  for (const ErrorText& e : kErrors) {
    if (e.error == error) return &e;
  }
  return nullptr;
}

int Attribute(const DeviceOptions& options, cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 48 * 1024;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxRegistersPerBlock:
      return kRegisters;
    case cudaDevAttrMultiProcessorCount:
      return options.num_sms;
    case cudaDevAttrL2CacheSize:
      return kL2Bytes;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrComputeCapabilityMajor:
      return options.major;
    case cudaDevAttrComputeCapabilityMinor:
      return options.minor;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return MaxSmemBytes(options) + 1024;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return MaxSmemBytes(options);
  }
  return -1;
}

cudaDeviceProp Properties(const DeviceOptions& options) {
  cudaDeviceProp p = {};
  std::snprintf(p.name, sizeof(p.name), "Emulated sm_%d%d", options.major, options.minor);
  p.totalGlobalMem = static_cast<size_t>(options.memory_bytes);
  p.sharedMemPerBlock = 48 * 1024;
  p.regsPerBlock = kRegisters;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 0x7FFFFFFF;
  p.maxGridSize[1] = p.maxGridSize[2] = 0xFFFF;
  p.major = options.major;
  p.minor = options.minor;
  p.multiProcessorCount = options.num_sms;
  p.asyncEngineCount = 2;
  p.unifiedAddressing = 1;
  p.memoryBusWidth = 5120;
  p.l2CacheSize = kL2Bytes;
  p.maxThreadsPerMultiProcessor = 2048;
  p.sharedMemPerMultiprocessor = static_cast<size_t>(MaxSmemBytes(options)) + 1024;
  p.regsPerMultiprocessor = kRegisters;
  p.sharedMemPerBlockOptin = static_cast<size_t>(MaxSmemBytes(options));
  p.maxBlocksPerMultiProcessor = 32;
  p.clusterLaunch = options.major >= 9;
  return p;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* const found = FindError(error);
  return found == nullptr ? "unrecognized error code" : found->name;
}

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* const found = FindError(error);
  return found == nullptr ? "unrecognized error code" : found->text;
}

cudaError_t cudaGetDeviceCount(int* count) {
  State& state = GetState();
  const Lock lock(state.mutex);
  *count = 0;
  const cudaError_t planned = CountCall(state, CallKind::kDevice);
  if (planned != cudaSuccess) return NoteError(planned);
  *count = state.options.count;
  return *count > 0 ? cudaSuccess : NoteError(cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device) {
  return ApiCall(CallKind::kDevice, [&](State& state, Lock&) {
    if (device < 0 || device >= state.options.count) return cudaErrorInvalidDevice;
    *prop = Properties(state.options);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attr, int device) {
  return ApiCall(CallKind::kDevice, [&](State& state, Lock&) {
    if (device < 0 || device >= state.options.count) return cudaErrorInvalidDevice;
    *value = Attribute(state.options, attr);
    return *value >= 0 ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return ApiCall(CallKind::kDevice, [&](State& state, Lock& lock) {
    const cudaError_t capture = CheckUnsafeCall(state);
    if (capture != cudaSuccess) return capture;
    const cudaError_t error = RunDevice(state, lock, CurrentDevice());
    CheckGuards("a wait for the device");
    return error;
  });
}

// Takes back all that the device was asked for; its handles and addresses are dead.
cudaError_t cudaDeviceReset() {
  State& state = GetState();
  const Lock lock(state.mutex);
  const int device = CurrentDevice();
  FailDevice(state, device, cudaSuccess);
  state.devices[device].used_bytes = 0;
  ReleaseDeviceMemory(device);
  for (const auto& stream : state.running) {
    if (stream->device == device && stream->capture != nullptr) EndCapture(state, stream->capture);
  }
  state.streams.RemoveIf([&](const Stream& stream) { return stream.device == device; });
  state.events.RemoveIf([&](const Event& event) { return event.device == device; });
  std::erase_if(state.running, [&](auto& s) { return s->device == device && !s->is_default; });
  std::erase_if(state.max_smem, [&](const auto& entry) { return entry.first.first == device; });
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}
