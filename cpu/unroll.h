// Unrolls the next loop whole, so that small arrays of vectors live in registers. The loop's bound
// is a constant.
#pragma once

#if defined(__clang__)
#define JEVONS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define JEVONS_UNROLL _Pragma("GCC unroll 32")
#endif
