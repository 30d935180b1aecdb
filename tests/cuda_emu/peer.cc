// Memory of other devices: what a kernel stores there is seen late, until a release says so.
#include <algorithm>
#include <iterator>
#include <map>
#include <string>

#include "tests/cuda_emu/grid_state.h"
#include "tests/cuda_emu/memory.h"

namespace jevons::emu {
namespace {

constexpr int kMostBytes = 16;

struct Store {
  int device = -1;  // that made it
  void* peer = nullptr;
  int bytes = 0;
  unsigned char value[kMostBytes] = {};
};

// On their way; where there are too many some one arrives. Only kernels touch it, of which one runs at a
// time.
constexpr int kMostStores = 4096;
Store stores[kMostStores];
int num_stores = 0;

uint64_t system_key;

// Memory that was shared, by its begin and end.
std::map<uintptr_t, uintptr_t>& retired = *new std::map<uintptr_t, uintptr_t>;

bool IsRetired(const void* address) {
  const auto after = retired.upper_bound(reinterpret_cast<uintptr_t>(address));
  return after != retired.begin() &&
         reinterpret_cast<uintptr_t>(address) < std::prev(after)->second;
}

// Where no other device may write there, null.
const Allocation* FindShared(const void* address, int bytes) {
  const Allocation* const a = FindAllocation(address);
  const bool shared = a != nullptr && (a->shared || a->place() == Place::kPinned);
  return shared && LiesWhole(address, bytes) ? a : nullptr;
}

// Memory that was given back since belongs to nobody who would miss it.
void Arrive(const Store& store) {
  if (FindShared(store.peer, store.bytes) != nullptr)
    CopyBytes(store.peer, store.value, store.bytes);
}

}  // namespace

void RetireShared(const void* data, int64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  retired[begin] = begin + static_cast<uintptr_t>(bytes);
}

void ForgetRetired() { retired.clear(); }

void StorePeer(void* peer, const void* from, int bytes, Site at) {
  RunningThread().at = at;
  const Allocation* const a = FindShared(peer, bytes);
  if (a == nullptr && IsRetired(peer)) return;
  if (a == nullptr) {
    Misuse("a store of " + std::to_string(bytes) +
           " bytes to memory that its device shares with none");
  }
  if (reinterpret_cast<uintptr_t>(peer) % bytes != 0) {
    Misuse("a store of " + std::to_string(bytes) +
           " bytes to a peer's address that is not aligned so");
  }
  Store store = {.device = RunningDevice(), .peer = peer, .bytes = bytes};
  CopyBytes(store.value, from, bytes);
  // The host sees it at once.
  if (a->place() == Place::kPinned || grid.OneIn(4)) {
    Arrive(store);
    return;
  }
  Store& place =
      num_stores < kMostStores ? stores[num_stores++] : stores[grid.Random() % kMostStores];
  if (place.peer != nullptr) Arrive(place);
  place = store;
}

void StoreReleaseSystem(uint64_t* flag, uint64_t value, Site at) {
  RunningThread().at = at;
  const int device = RunningDevice();
  int num_left = 0;
  for (int i = 0; i < num_stores; ++i) {
    if (stores[i].device == device) {
      Arrive(stores[i]);
    } else {
      stores[num_left++] = stores[i];
    }
  }
  std::fill(stores + num_left, stores + num_stores, Store());
  num_stores = num_left;
  Release(&system_key);
  if (FindShared(flag, sizeof(*flag)) == nullptr) {
    if (IsRetired(flag)) return;
    Misuse("a flag in memory that its device shares with none");
  }
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

uint64_t LoadAcquireSystem(const uint64_t* flag, Site at) {
  RunningThread().at = at;
  const uint64_t value = __atomic_load_n(flag, __ATOMIC_ACQUIRE);
  Acquire(&system_key);
  return value;
}

}  // namespace jevons::emu
