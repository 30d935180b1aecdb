#include "tests/support/allocation_counter.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<int64_t> num_allocations = 0;
std::atomic<int64_t> num_deleted = 0;

void Free(void* memory) {
  if (memory != nullptr) num_deleted.fetch_add(1, std::memory_order_relaxed);
  std::free(memory);
}
}  // namespace

void* operator new(std::size_t size) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(size > 0 ? size : 1);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { Free(memory); }
void operator delete(void* memory, std::size_t) noexcept { Free(memory); }

namespace jevons {

int64_t NumAllocations() { return num_allocations.load(std::memory_order_relaxed); }
int64_t NumLiveAllocations() {
  return NumAllocations() - num_deleted.load(std::memory_order_relaxed);
}

}  // namespace jevons
