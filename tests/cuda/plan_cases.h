// What tests of the plans share: a device of each kind, addresses, and what holds for every block.
#pragma once

#include <cstdint>

#include "cuda/device_facts.h"
#include "gtest/gtest.h"

namespace jevons::cuda {

inline constexpr DeviceFacts kDevices[] = {{.sm = 80, .num_sms = 108, .max_smem_bytes = 166912},
                                           {.sm = 90, .num_sms = 132, .max_smem_bytes = 232448},
                                           {.sm = 100, .num_sms = 148, .max_smem_bytes = 232448}};
inline constexpr int32_t kStepTokens[] = {1,  2,   7,   8,    9,    16,   33,   64,
                                          65, 120, 256, 1000, 4096, 8192, 65536};
inline constexpr int32_t kMostGridY = 65535;
inline constexpr int32_t kDefaultSmem = 48 * 1024;  // without asking for more

// Addresses that are never followed: one for vectors of 16 bytes, and one that splits them.
alignas(256) inline char g_place[512];
inline void* const kEven = g_place;
inline void* const kOdd = g_place + 2;

inline void ExpectBlock(int32_t threads) {
  EXPECT_GE(threads, 32);
  EXPECT_LE(threads, 1024);
  EXPECT_EQ(threads % 32, 0);
}

}  // namespace jevons::cuda
