// A failure of each kind of call that the emulator can let fail.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "tests/cuda_emu/runtime.h"

namespace jevons {

struct Fault {
  emu::CallKind kind;
  cudaError_t error;
  std::string name;
};

inline const Fault kFaults[] = {
    {emu::CallKind::kAllocation, cudaErrorMemoryAllocation, "allocation"},
    {emu::CallKind::kLaunch, cudaErrorLaunchFailure, "launch"},
    {emu::CallKind::kCopy, cudaErrorUnknown, "copy"},
    {emu::CallKind::kStream, cudaErrorUnknown, "stream"},
    {emu::CallKind::kEvent, cudaErrorUnknown, "event"},
    {emu::CallKind::kGraph, cudaErrorUnknown, "graph"},
    {emu::CallKind::kDevice, cudaErrorUnknown, "device"},
    {emu::CallKind::kExecution, cudaErrorIllegalAddress, "execution"},
};

}  // namespace jevons
