#pragma once

#include <cstdint>

namespace jevons {

// Bytes that the system says are available to new programs; 0 where it does not say.
int64_t AvailableMemory();

}  // namespace jevons
