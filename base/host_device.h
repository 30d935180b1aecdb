// For functions that the CPU and a GPU compute alike: nothing for plain C++, both sides for nvcc.
#pragma once

#ifdef __CUDACC__
#define JEVONS_HOST_DEVICE __host__ __device__
#else
#define JEVONS_HOST_DEVICE
#endif
