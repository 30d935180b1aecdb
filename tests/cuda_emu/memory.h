// Device and page-locked memory: each allocation is host memory of its own between two guard zones
// of a known pattern, and starts as 0xFF: NaN in every float type. Guarded by State::mutex, but for
// what a running kernel calls.
#pragma once

#include <cstdint>
#include <string>

namespace jevons::emu {

enum class Place { kPageable, kPinned, kDevice };

struct Allocation {
  char* base = nullptr;  // null: registered, owned by the caller
  char* data = nullptr;
  int64_t bytes = 0;
  int device = -1;      // -1: page-locked
  bool shared = false;  // other devices may write to it
  int64_t bytes_read = 0;

  Place place() const { return device < 0 ? Place::kPinned : Place::kDevice; }
};

// The allocation that holds `address`, or null. An address one past the end is not held.
Allocation* FindAllocation(const void* address);
// Whether [address, address + bytes) is within one allocation, or entirely outside of all.
bool LiesWhole(const void* address, int64_t bytes);

// Reports a misuse if a guard zone was written to; `after` names what ran before.
void CheckGuards(const std::string& after);

// The device whose kernel runs now; -1: none.
void SetRunningDevice(int device);

// peer.cc. This memory is no longer shared, which is no misuse of those that still store there.
void RetireShared(const void* data, int64_t bytes);
void ForgetRetired();

// Frees what a device has, without looking at the guards.
void ReleaseDeviceMemory(int device);

int64_t NumAllocations();
int64_t NumPinned();

}  // namespace jevons::emu
