// Counts heap allocations of the whole test binary. Link allocation_counter.cc, which replaces
// operator new.
#pragma once

#include <cstdint>

namespace jevons {

// Calls of operator new so far, from every thread.
int64_t NumAllocations();
// Of those, what has not been deleted.
int64_t NumLiveAllocations();

}  // namespace jevons
