#include "cuda/device_memory.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "cuda/cuda_error.h"
#include "ops/validate.h"

namespace jevons::cuda {
namespace {

absl::Status AllocatePinned(int64_t bytes, void*& data) {
  const cudaError_t error = cudaMallocHost(&data, static_cast<size_t>(bytes));
  if (error == cudaSuccess) return absl::OkStatus();
  data = nullptr;
  cudaGetLastError();
  return ToStatus(error, absl::StrCat("no page-locked memory for ", bytes, " bytes"));
}

}  // namespace

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

absl::Status StagingRing::WaitFor(Slot& slot) {
  if (slot.in_use) RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(slot.done), "staging copy"));
  slot.in_use = false;
  return absl::OkStatus();
}

absl::Status StagingRing::Grow(int64_t bytes) {
  if (bytes <= slot_bytes_) return absl::OkStatus();
  int64_t grown = std::max(slot_bytes_, kLeastSlotBytes);
  while (grown < bytes) grown *= 2;
  slot_bytes_ = 0;
  for (Slot& slot : slots_) {
    RETURN_IF_ERROR(WaitFor(slot));
    if (slot.done == nullptr) {
      RETURN_IF_ERROR(
          ToStatus(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming), "staging event"));
    }
    cudaFreeHost(slot.data);
    slot.data = nullptr;
    RETURN_IF_ERROR(AllocatePinned(grown, slot.data));
  }
  slot_bytes_ = grown;
  return absl::OkStatus();
}

absl::Status StagingRing::Copy(void* device, const void* host, int64_t bytes, cudaStream_t stream) {
  RETURN_IF_ERROR(Grow(std::min(bytes, kMostSlotBytes)));
  for (int64_t begin = 0; begin < bytes; begin += slot_bytes_) {
    const int64_t piece = std::min(slot_bytes_, bytes - begin);
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % slots_.size();
    RETURN_IF_ERROR(WaitFor(slot));
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

absl::StatusOr<std::unique_ptr<PinnedReadback>> PinnedReadback::Create(int64_t bytes,
                                                                       cudaStream_t stream) {
  auto out = std::unique_ptr<PinnedReadback>(new PinnedReadback(bytes, stream));
  RETURN_IF_ERROR(AllocatePinned(std::max<int64_t>(bytes, 1), out->data_));
  RETURN_IF_ERROR(
      ToStatus(cudaEventCreateWithFlags(&out->done_, cudaEventDisableTiming), "readback event"));
  return out;
}

PinnedReadback::~PinnedReadback() {
  if (done_ != nullptr) {
    cudaEventSynchronize(done_);
    cudaEventDestroy(done_);
  }
  cudaFreeHost(data_);
}

absl::Status PinnedReadback::Start(const TensorView& device) {
  RETURN_IF_ERROR(ValidateReadback(device, bytes_));
  const int64_t bytes = device.num_elements() * DTypeBytes(device.dtype);
  if (bytes > 0) {
    RETURN_IF_ERROR(ToStatus(cudaMemcpyAsync(data_, device.data, static_cast<size_t>(bytes),
                                             cudaMemcpyDeviceToHost, stream_),
                             "copy from the device"));
  }
  return ToStatus(cudaEventRecord(done_, stream_), "readback event");
}

absl::StatusOr<const void*> PinnedReadback::Wait() {
  RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(done_), "work on the device"));
  return data_;
}

absl::StatusOr<bool> PinnedReadback::Done() {
  const cudaError_t error = cudaEventQuery(done_);
  if (error == cudaErrorNotReady) return false;
  RETURN_IF_ERROR(ToStatus(error, "work on the device"));
  return true;
}

}  // namespace jevons::cuda
