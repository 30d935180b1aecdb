// Memory of the device, and the ways from the host to it and back.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "base/status.h"
#include "ops/backend.h"

namespace jevons::cuda {

class DeviceBuffer : public Buffer {
 public:
  // Uninitialised. RESOURCE_EXHAUSTED with the size where there is none. bytes >= 0.
  static absl::StatusOr<std::unique_ptr<DeviceBuffer>> Allocate(int64_t bytes);
  ~DeviceBuffer() override;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  void* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }
  template <typename T>
  T* ptr() {
    return static_cast<T*>(data_);
  }

 private:
  DeviceBuffer(void* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  void* const data_;
  const int64_t bytes_;
};

// A ring of page-locked slots: the host fills one while the device reads another. Used by one
// thread at a time.
class StagingRing {
 public:
  explicit StagingRing(int num_slots) : slots_(static_cast<size_t>(num_slots)) {}
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  // Queues a copy of host memory to the device. `host` may change when the call returns; it waits
  // only while all slots are under way, and where a copy is larger than any before, for which all
  // slots grow.
  absl::Status Copy(void* device, const void* host, int64_t bytes, cudaStream_t stream);

 private:
  static constexpr int64_t kLeastSlotBytes = 4 << 10;
  // Larger copies go in pieces: reading one piece of a file overlaps the transfer of another.
  static constexpr int64_t kMostSlotBytes = 8 << 20;

  struct Slot {
    void* data = nullptr;
    cudaEvent_t done = nullptr;
    bool in_use = false;
  };
  absl::Status WaitFor(Slot& slot);
  absl::Status Grow(int64_t bytes);

  std::vector<Slot> slots_;
  int64_t slot_bytes_ = 0;
  size_t next_ = 0;
};

// Copies to page-locked memory of its own. Its stream outlives it.
class PinnedReadback : public Readback {
 public:
  // RESOURCE_EXHAUSTED with the size where there is no memory.
  static absl::StatusOr<std::unique_ptr<PinnedReadback>> Create(int64_t bytes, cudaStream_t stream);
  ~PinnedReadback() override;
  PinnedReadback(const PinnedReadback&) = delete;
  PinnedReadback& operator=(const PinnedReadback&) = delete;

  absl::Status Start(const TensorView& device) override;
  absl::StatusOr<const void*> Wait() override;
  absl::StatusOr<bool> Done() override;

 private:
  PinnedReadback(int64_t bytes, cudaStream_t stream) : bytes_(bytes), stream_(stream) {}

  const int64_t bytes_;
  const cudaStream_t stream_;
  void* data_ = nullptr;
  cudaEvent_t done_ = nullptr;
};

}  // namespace jevons::cuda
