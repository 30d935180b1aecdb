// What a test may plan for cuBLASLt and ask of it. The functions are thread-safe.
#pragma once

#include <cublasLt.h>

#include <cstdint>

namespace jevons::emu {

// The n-th call from now on that makes, sets, chooses or queues something returns this status.
void FailNthCublasLtCall(int64_t n, cublasStatus_t status);
int64_t NumCublasLtCalls();
// Queued or recorded since ResetCublasLt; a replay counts nothing.
int64_t NumCublasLtProducts();
// Handles, descriptors and preferences.
int64_t OutstandingCublasLt();
// Products with so many columns are not offered: none where `columns` is 0, the default.
void RefuseCublasLt(int64_t columns);
// Forgets all plans and counts.
void ResetCublasLt();

}  // namespace jevons::emu
