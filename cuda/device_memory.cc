#include "cuda/device_memory.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_error.h"

namespace jevons::cuda {

absl::StatusOr<std::unique_ptr<DeviceBuffer>> DeviceBuffer::Allocate(int64_t bytes) {
  if (bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("Allocate: bytes must be at least 0, got ", bytes));
  }
  void* data = nullptr;
  // The device gives no memory of size 0, and views of nothing still want a place.
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(std::max<int64_t>(bytes, 16)));
  if (error != cudaSuccess) {
    cudaGetLastError();  // a lack of memory is no fault of the device
    return ToStatus(error, absl::StrCat("Allocate: no device memory for ", bytes, " bytes"));
  }
  return std::unique_ptr<DeviceBuffer>(new DeviceBuffer(data, bytes));
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

StagingRing::~StagingRing() {
  for (Slot& slot : slots_) {
    if (slot.done != nullptr) {
      cudaEventSynchronize(slot.done);
      cudaEventDestroy(slot.done);
    }
    cudaFreeHost(slot.data);
  }
}

absl::Status StagingRing::Prepare(Slot& slot, int64_t bytes) {
  if (slot.done == nullptr) {
    RETURN_IF_ERROR(
        ToStatus(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming), "staging event"));
  }
  if (slot.in_use) RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(slot.done), "staging copy"));
  slot.in_use = false;
  if (slot.bytes >= bytes) return absl::OkStatus();
  cudaFreeHost(slot.data);
  slot.data = nullptr;
  slot.bytes = 0;
  const cudaError_t error = cudaMallocHost(&slot.data, static_cast<size_t>(bytes));
  if (error != cudaSuccess) {
    cudaGetLastError();
    return ToStatus(error, absl::StrCat("no page-locked memory for ", bytes, " bytes"));
  }
  slot.bytes = bytes;
  return absl::OkStatus();
}

absl::Status StagingRing::Copy(void* device, const void* host, int64_t bytes, cudaStream_t stream) {
  for (int64_t begin = 0; begin < bytes; begin += kSlotBytes) {
    const int64_t piece = std::min(kSlotBytes, bytes - begin);
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % kSlots;
    RETURN_IF_ERROR(Prepare(slot, piece));
    std::memcpy(slot.data, static_cast<const char*>(host) + begin, static_cast<size_t>(piece));
    RETURN_IF_ERROR(
        ToStatus(cudaMemcpyAsync(static_cast<char*>(device) + begin, slot.data,
                                 static_cast<size_t>(piece), cudaMemcpyHostToDevice, stream),
                 "copy to the device"));
    RETURN_IF_ERROR(ToStatus(cudaEventRecord(slot.done, stream), "staging event"));
    slot.in_use = true;
  }
  return absl::OkStatus();
}

}  // namespace jevons::cuda
