// The limits of the machine that speeds are reported against: measured, in the same run.
#pragma once

#include "cpu/thread_pool.h"

namespace jevons {

// GB/s (10^9) of reading 1 GiB in huge pages with all threads of the pool: the best of several
// passes and of a few ways to read, since what disturbs a pass makes no ceiling. 0 where there is
// no memory for it.
double MeasureReadBandwidth(ThreadPool& pool);

// GFLOP/s of fp32 multiply-adds on registers with all threads, two a multiply-add, with the
// instruction set that the process uses: the best of several passes.
double MeasureFmaRate(ThreadPool& pool);

}  // namespace jevons
