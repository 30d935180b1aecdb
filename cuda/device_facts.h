// What the host logic of a launch may know about the device.
#pragma once

#include <cstdint>

namespace jevons::cuda {

// Every Choose is a pure function of its arguments and of this.
struct DeviceFacts {
  int32_t sm = 90;                  // compute capability: 80, 90, 100
  int32_t num_sms = 132;            // multiprocessors
  int32_t max_smem_bytes = 232448;  // dynamic shared memory of one block
  bool early = false;               // launches are LaunchShape::early
};

}  // namespace jevons::cuda
