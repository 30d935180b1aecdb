#include "tests/cuda_emu/memory.h"

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/state.h"
#include "tests/cuda_emu/stream.h"

#if defined(__SANITIZE_ADDRESS__)
#define JEVONS_EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define JEVONS_EMU_ASAN 1
#endif
#endif
#ifndef JEVONS_EMU_ASAN
#define JEVONS_EMU_ASAN 0
#endif

namespace jevons::emu {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kGuardBytes = 256;
// More than a host has. AddressSanitizer would end the program where others refuse.
constexpr int64_t kMostBytes = int64_t{1} << 39;
constexpr unsigned char kGuardByte = 0xA5;
constexpr unsigned char kFreshByte = 0xFF;

// Sorted by address. Never destroyed, as the allocations of a leak are not.
std::vector<Allocation*>& table = *new std::vector<Allocation*>;
Allocation* recent = nullptr;
int running_device = -1;
int64_t total_bytes_read = 0;

Allocation* Find(uintptr_t address) {
  if (recent != nullptr) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(recent->data);
    if (address - begin < static_cast<uintptr_t>(recent->bytes)) return recent;
  }
  const auto after = std::upper_bound(
      table.begin(), table.end(), address,
      [](uintptr_t x, const auto* a) { return x < reinterpret_cast<uintptr_t>(a->data); });
  if (after == table.begin()) return nullptr;
  Allocation* const found = *(after - 1);
  const uintptr_t offset = address - reinterpret_cast<uintptr_t>(found->data);
  if (offset >= static_cast<uintptr_t>(found->bytes)) return nullptr;
  recent = found;
  return found;
}

void Insert(Allocation* allocation) {
  const auto place = std::upper_bound(table.begin(), table.end(), allocation,
                                      [](auto* a, auto* b) { return a->data < b->data; });
  table.insert(place, allocation);
}

char* GuardAfter(const Allocation& a) { return a.data + a.bytes; }
int64_t GuardAfterBytes(const Allocation& a) {
  return (a.bytes + kAlignment - 1) / kAlignment * kAlignment - a.bytes + kGuardBytes;
}

bool GuardsHold(const Allocation& a) {
  if (a.base == nullptr || JEVONS_EMU_ASAN) return true;  // AddressSanitizer watches the access
  static const std::string pattern(kGuardBytes + kAlignment, static_cast<char>(kGuardByte));
  const auto holds = [](const char* begin, int64_t bytes) {
    return std::memcmp(begin, pattern.data(), static_cast<size_t>(bytes)) == 0;
  };
  return holds(a.base, kGuardBytes) && holds(GuardAfter(a), GuardAfterBytes(a));
}

void CheckGuard(const Allocation& a, const std::string& after) {
  if (GuardsHold(a)) return;
  ReportMisuse("a write outside of an allocation of " + std::to_string(a.bytes) +
               " bytes was found after " + after);
  std::memset(a.base, kGuardByte, kGuardBytes);  // one report for one write
  std::memset(GuardAfter(a), kGuardByte, GuardAfterBytes(a));
}

Allocation* Allocate(int64_t bytes, int device) {
  if (bytes > kMostBytes) return nullptr;
  const int64_t whole =
      kGuardBytes + (bytes + kAlignment - 1) / kAlignment * kAlignment + kGuardBytes;
  char* const base = static_cast<char*>(std::aligned_alloc(kAlignment, whole));
  if (base == nullptr) return nullptr;
  Allocation* const a =
      new Allocation{.base = base, .data = base + kGuardBytes, .bytes = bytes, .device = device};
  std::memset(base, kGuardByte, kGuardBytes);
  std::memset(a->data, kFreshByte, bytes);
  std::memset(GuardAfter(*a), kGuardByte, GuardAfterBytes(*a));
  ASAN_POISON_MEMORY_REGION(base, kGuardBytes);
  ASAN_POISON_MEMORY_REGION(GuardAfter(*a), GuardAfterBytes(*a));
  Insert(a);
  return a;
}

void Release(Allocation* a) {
  std::erase(table, a);
  recent = nullptr;
  if (a->base != nullptr) {
    ASAN_UNPOISON_MEMORY_REGION(a->base, kGuardBytes);
    ASAN_UNPOISON_MEMORY_REGION(GuardAfter(*a), GuardAfterBytes(*a));
    std::free(a->base);
  }
  delete a;
}

// The allocation that begins at `data`; reports a misuse where there is none of this place.
Allocation* FindToFree(void* data, Place place, const char* call) {
  Allocation* const a = FindAllocation(data);
  if (a != nullptr && a->data == data && a->place() == place) return a;
  ReportMisuse(std::string(call) + " of memory that was not allocated, or was freed before");
  return nullptr;
}

int64_t Count(Place place) {
  return std::count_if(table.begin(), table.end(), [&](auto* a) { return a->place() == place; });
}

Allocation* CheckAccess(const void* address, int64_t bytes, const char* what) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  Allocation* const a = Find(begin);
  if (a == nullptr || begin + bytes > reinterpret_cast<uintptr_t>(a->data) + a->bytes) {
    ReportMisuse(std::string(what) + " of " + std::to_string(bytes) +
                 " bytes outside of the allocations of device memory");
    return nullptr;
  }
  if (running_device >= 0 && a->device >= 0 && a->device != running_device) {
    ReportMisuse(std::string(what) + " of another device's memory");
    return nullptr;
  }
  return a;
}

}  // namespace

Allocation* FindAllocation(const void* address) {
  return Find(reinterpret_cast<uintptr_t>(address));
}

bool LiesWhole(const void* address, int64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  if (const Allocation* const a = Find(begin)) {
    return begin + bytes <= reinterpret_cast<uintptr_t>(a->data) + a->bytes;
  }
  return std::none_of(table.begin(), table.end(), [&](const Allocation* a) {
    const uintptr_t data = reinterpret_cast<uintptr_t>(a->data);
    return begin < data && data < begin + bytes;
  });
}

void CheckGuards(const std::string& after) {
  for (const Allocation* a : table) CheckGuard(*a, after);
}

void SetRunningDevice(int device) { running_device = device; }
int RunningDevice() { return running_device; }

void ReleaseDeviceMemory(int device) {
  for (Allocation* a : std::vector<Allocation*>(table)) {
    if (a->device == device) Release(a);
  }
}

int64_t NumAllocations() { return Count(Place::kDevice); }
int64_t NumPinned() { return Count(Place::kPinned); }

void CheckGlobalRead(const void* address, int64_t bytes) {
  Allocation* const a = CheckAccess(address, bytes, "a read");
  if (a == nullptr) return;
  a->bytes_read += bytes;
  total_bytes_read += bytes;
}

void CheckGlobalWrite(const void* address, int64_t bytes) {
  CheckAccess(address, bytes, "a write");
}

int64_t GlobalBytesRead() {
  const Lock lock(GetState().mutex);
  return total_bytes_read;
}

int64_t GlobalBytesRead(const void* address) {
  const Lock lock(GetState().mutex);
  const Allocation* const a = FindAllocation(address);
  return a == nullptr ? 0 : a->bytes_read;
}

void ResetCounters() {
  const Lock lock(GetState().mutex);
  total_bytes_read = 0;
  for (Allocation* a : table) a->bytes_read = 0;
}

}  // namespace jevons::emu

using namespace jevons::emu;

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return ApiCall(CallKind::kAllocation, [&](State& state, Lock&) {
    *data = nullptr;
    const cudaError_t capture = CheckUnsafeCall(state);
    if (capture != cudaSuccess || bytes == 0) return capture;
    Device& device = state.devices[CurrentDevice()];
    const int64_t left = state.options.memory_bytes - device.used_bytes;
    if (bytes > static_cast<size_t>(left)) return cudaErrorMemoryAllocation;
    const Allocation* const a = Allocate(static_cast<int64_t>(bytes), CurrentDevice());
    if (a == nullptr) return cudaErrorMemoryAllocation;
    device.used_bytes += a->bytes;
    *data = a->data;
    return cudaSuccess;
  });
}

// As on a device, it waits for all work of the device first.
cudaError_t cudaFree(void* data) {
  State& state = GetState();
  Lock lock(state.mutex);
  if (data == nullptr) return NoteError(state.devices[CurrentDevice()].sticky);
  const cudaError_t capture = CheckUnsafeCall(state);
  if (capture != cudaSuccess) return NoteError(capture);
  Allocation* const a = FindToFree(data, Place::kDevice, "cudaFree");
  if (a == nullptr) return NoteError(cudaErrorInvalidValue);
  const int device = a->device;
  const cudaError_t error = RunDevice(state, lock, device);
  CheckGuard(*a, "its release by cudaFree");
  state.devices[device].used_bytes -= a->bytes;
  Release(a);
  return NoteError(error);
}

cudaError_t cudaMallocHost(void** data, size_t bytes) {
  return cudaHostAlloc(data, bytes, cudaHostAllocDefault);
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned flags) {
  return ApiCall(CallKind::kAllocation, [&](State& state, Lock&) {
    *data = nullptr;
    const cudaError_t capture = CheckUnsafeCall(state);
    if (capture != cudaSuccess || bytes == 0) return capture;
    const Allocation* const a = Allocate(static_cast<int64_t>(bytes), -1);
    if (a == nullptr) return cudaErrorMemoryAllocation;
    *data = a->data;
    return cudaSuccess;
  });
}

cudaError_t cudaFreeHost(void* data) {
  State& state = GetState();
  const Lock lock(state.mutex);
  if (data == nullptr) return cudaSuccess;
  const cudaError_t capture = CheckUnsafeCall(state);
  if (capture != cudaSuccess) return NoteError(capture);
  Allocation* const a = FindToFree(data, Place::kPinned, "cudaFreeHost");
  if (a == nullptr) return NoteError(cudaErrorInvalidValue);
  CheckGuard(*a, "its release by cudaFreeHost");
  Release(a);
  return NoteError(state.devices[CurrentDevice()].sticky);
}

cudaError_t cudaHostRegister(void* data, size_t bytes, unsigned flags) {
  return ApiCall(CallKind::kAllocation, [&](State&, Lock&) {
    if (data == nullptr || bytes == 0) return cudaErrorInvalidValue;
    if (FindAllocation(data) != nullptr || !LiesWhole(data, static_cast<int64_t>(bytes))) {
      return cudaErrorHostMemoryAlreadyRegistered;
    }
    Insert(new Allocation{.data = static_cast<char*>(data), .bytes = static_cast<int64_t>(bytes)});
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* data) {
  const Lock lock(GetState().mutex);
  Allocation* const a = FindAllocation(data);
  if (a == nullptr || a->data != data || a->base != nullptr) {
    return NoteError(cudaErrorHostMemoryNotRegistered);
  }
  Release(a);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return ApiCall(CallKind::kDevice, [&](State& state, Lock&) {
    *total = static_cast<size_t>(state.options.memory_bytes);
    *free = *total - static_cast<size_t>(state.devices[CurrentDevice()].used_bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return ApiCall(CallKind::kDevice, [&](State&, Lock&) {
    const Allocation* const a = FindAllocation(pointer);
    void* const same = const_cast<void*>(pointer);
    if (a == nullptr) {
      *attributes = {cudaMemoryTypeUnregistered, -1, nullptr, same};
    } else if (a->place() == Place::kPinned) {
      *attributes = {cudaMemoryTypeHost, CurrentDevice(), same, same};
    } else {
      *attributes = {cudaMemoryTypeDevice, a->device, same, nullptr};
    }
    return cudaSuccess;
  });
}
