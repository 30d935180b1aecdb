#include "cuda/cuda_backend.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cuda/cuda_backend_impl.h"
#include "cuda/cuda_error.h"

namespace jevons {
namespace cuda {
namespace {

constexpr int kOldestMajor = 8;
// The oldest that lets a kernel begin before the one in front has ended.
constexpr int32_t kOldestEarlySm = 90;
// Of a100, h100 and b200; attention needs most of it. Cards with 100 KB are left out.
constexpr int64_t kLeastSmemBytes = 160 * 1024;

absl::Status CheckDeviceIsThere(int32_t device) {
  const int32_t count = NumCudaDevices();
  if (device >= 0 && device < count) return absl::OkStatus();
  return absl::NotFoundError(
      absl::StrCat("CUDA device ", device, " is not there: ", count, " found"));
}

}  // namespace

BackendTraits CudaTraits(bool records_steps) {
  return {.activation = DType::kBF16,
          .kv_cache = DType::kBF16,
          .host_memory = false,
          .samples = true,
          .groups_shared_experts = true,
          .fuses_gated_up = true,
          .records_steps = records_steps};
}

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(
    const CudaBackendOptions& options) {
  RETURN_IF_ERROR(CheckDeviceIsThere(options.device));
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(options.device), "choice of the device"));
  cudaDeviceProp properties;
  RETURN_IF_ERROR(
      ToStatus(cudaGetDeviceProperties(&properties, options.device), "properties of the device"));
  if (properties.major < kOldestMajor) {
    return absl::FailedPreconditionError(absl::StrCat(
        "CUDA device ", options.device, " (", properties.name, ") must be sm_", kOldestMajor * 10,
        " or later, got sm_", properties.major * 10 + properties.minor));
  }
  if (static_cast<int64_t>(properties.sharedMemPerBlockOptin) < kLeastSmemBytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "CUDA device ", options.device, " (", properties.name, ") must let a block have ",
        kLeastSmemBytes, " bytes of shared memory, got ", properties.sharedMemPerBlockOptin));
  }
  const DeviceFacts facts = {
      .sm = properties.major * 10,
      .num_sms = properties.multiProcessorCount,
      .max_smem_bytes = static_cast<int32_t>(properties.sharedMemPerBlockOptin)};
  std::string description = absl::StrFormat(
      "cuda (%s, sm_%d%d, %d multiprocessors, %.1f GB)", properties.name, properties.major,
      properties.minor, facts.num_sms, static_cast<double>(properties.totalGlobalMem) / 1e9);
  if (options.cublaslt_rows > 0) {
    absl::StrAppend(&description, ", cuBLASLt from ", options.cublaslt_rows, " rows");
  }
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream"));
  auto backend =
      std::unique_ptr<CudaBackend>(new CudaBackend(options, facts, std::move(description), stream));
  if (options.cublaslt_rows > 0) {
    ASSIGN_OR_RETURN(backend->cublaslt_, CreateCublasLt());
  }
  return backend;
}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

absl::Status CudaBackend::BindThread() {
  return ToStatus(cudaSetDevice(options_.device), "choice of the device");
}

absl::Status CudaBackend::Wait() {
  return ToStatus(cudaStreamSynchronize(stream_), "work on the device");
}

absl::StatusOr<bool> CudaBackend::Done() {
  const cudaError_t error = cudaStreamQuery(stream_);
  if (error == cudaErrorNotReady) return false;
  RETURN_IF_ERROR(ToStatus(error, "work on the device"));
  return true;
}

int64_t CudaBackend::AvailableBytes() const {
  size_t free = 0;
  size_t total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
  return static_cast<int64_t>(free);
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaBackend::Allocate(int64_t bytes) {
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceBuffer> buffer, DeviceBuffer::Allocate(bytes));
  RETURN_IF_ERROR(ToStatus(cudaMemsetAsync(buffer->data(), 0, static_cast<size_t>(bytes), stream_),
                           "Allocate"));
  return buffer;
}

absl::StatusOr<DeviceTensor> CudaBackend::Upload(const TensorView& host) {
  if (!host.contiguous()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Upload: tensor must be contiguous, got strides of ", host.ToString()));
  }
  const int64_t bytes = host.num_elements() * DTypeBytes(host.dtype);
  DeviceTensor out;
  ASSIGN_OR_RETURN(out.buffer, DeviceBuffer::Allocate(bytes));
  out.view = host;
  out.view.data = out.buffer->data();
  RETURN_IF_ERROR(uploads_.Copy(out.view.data, host.data, bytes, stream_));
  return out;
}

absl::Status CudaBackend::Write(const TensorView& device, const TensorView& host) {
  RETURN_IF_ERROR(ValidateCopy(device, host));
  return writes_.Copy(device.data, host.data, host.num_elements() * DTypeBytes(host.dtype),
                      stream_);
}

absl::Status CudaBackend::Read(const TensorView& host, const TensorView& device) {
  RETURN_IF_ERROR(ValidateCopy(host, device));
  const int64_t bytes = host.num_elements() * DTypeBytes(host.dtype);
  if (bytes > 0) {
    RETURN_IF_ERROR(ToStatus(cudaMemcpyAsync(host.data, device.data, static_cast<size_t>(bytes),
                                             cudaMemcpyDeviceToHost, stream_),
                             "copy from the device"));
  }
  return Wait();
}

absl::StatusOr<std::unique_ptr<Readback>> CudaBackend::NewReadback(int64_t bytes) {
  return PinnedReadback::Create(bytes, stream_);
}

absl::Status CudaBackend::RunStep(int64_t key, absl::FunctionRef<absl::Status()> ops) {
  const auto step = [&] {
    in_step_ = options_.early_launches && facts_.sm >= kOldestEarlySm;
    const absl::Status status = ops();
    in_step_ = follows_kernel_of_step_ = false;
    return status;
  };
  return options_.records_steps ? graphs_.Run(key, step, stream_) : step();
}

DeviceFacts CudaBackend::LaunchFacts() {
  DeviceFacts facts = facts_;
  facts.early = std::exchange(follows_kernel_of_step_, in_step_);
  return facts;
}

absl::Status CudaBackend::Reserve(std::unique_ptr<DeviceBuffer>& scratch, int64_t bytes) {
  if (scratch != nullptr && scratch->bytes() >= bytes) return absl::OkStatus();
  if (graphs_.recording()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "a recorded step needs ", bytes, " bytes of scratch that were not taken before"));
  }
  // What was queued may still use the old one.
  RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(stream_), "work on the device"));
  scratch = nullptr;
  graphs_.Clear();  // what was recorded holds the old address
  ASSIGN_OR_RETURN(scratch, DeviceBuffer::Allocate(bytes));
  return ToStatus(cudaMemsetAsync(scratch->data(), 0, static_cast<size_t>(bytes), stream_),
                  "scratch");
}

absl::StatusOr<int32_t*> CudaBackend::BlockCounters() {
  RETURN_IF_ERROR(Reserve(block_counters_, kRouterCounters * sizeof(int32_t)));
  return block_counters_->ptr<int32_t>();
}

}  // namespace cuda

int32_t NumCudaDevices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

absl::StatusOr<std::string> CudaDeviceArch(int32_t device) {
  RETURN_IF_ERROR(cuda::CheckDeviceIsThere(device));
  cudaDeviceProp properties;
  RETURN_IF_ERROR(
      cuda::ToStatus(cudaGetDeviceProperties(&properties, device), "properties of the device"));
  return absl::StrCat("sm_", properties.major * 10 + properties.minor);
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options) {
  return cuda::CudaBackend::Create(options);
}

}  // namespace jevons
