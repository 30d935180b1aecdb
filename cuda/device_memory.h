// Memory of the device, and the way from the host to it.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <memory>

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
  StagingRing() = default;
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  // Queues a copy of host memory to the device. `host` may change when the call returns; it waits
  // only while all slots are under way.
  absl::Status Copy(void* device, const void* host, int64_t bytes, cudaStream_t stream);

 private:
  static constexpr int kSlots = 4;
  // Larger copies go in pieces: reading one piece of a file overlaps the transfer of another.
  static constexpr int64_t kSlotBytes = 8 << 20;

  struct Slot {
    void* data = nullptr;
    int64_t bytes = 0;
    cudaEvent_t done = nullptr;
    bool in_use = false;
  };
  absl::Status Prepare(Slot& slot, int64_t bytes);

  std::array<Slot, kSlots> slots_;
  int next_ = 0;
};

}  // namespace jevons::cuda
