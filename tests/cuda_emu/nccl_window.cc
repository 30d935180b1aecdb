// Memory that the ranks of a communicator share.
#include <nccl.h>
#include <nccl_device.h>

#include <algorithm>

#include "tests/cuda_emu/collectives.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/memory.h"
#include "tests/cuda_emu/nccl_plan.h"
#include "tests/cuda_emu/state.h"

using namespace jevons::emu;

ncclResult_t ncclMemAlloc(void** data, size_t bytes) {
  return cudaMalloc(data, bytes) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

// Another rank's mapping keeps it alive: what a kernel still stores there goes nowhere.
ncclResult_t ncclMemFree(void* data) {
  {
    const Lock lock(GetState().mutex);
    if (const Allocation* const a = FindAllocation(data)) RetireShared(a->data, a->bytes);
  }
  return cudaFree(data) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclCommWindowRegister(ncclComm_t comm, void* data, size_t bytes, ncclWindow_t* window,
                                    int flags) {
  {
    const Lock lock(GetState().mutex);
    Allocation* const a = FindAllocation(data);
    const bool whole = a != nullptr && a->data == data && a->bytes == static_cast<int64_t>(bytes) &&
                       a->place() == Place::kDevice;
    if (!whole || bytes % NCCL_WIN_REQUIRED_ALIGNMENT != 0 || flags != NCCL_WIN_COLL_SYMMETRIC) {
      return ncclInvalidArgument;
    }
    a->shared = true;
  }
  return RegisterWindow(comm, data, window);
}

ncclResult_t ncclCommWindowDeregister(ncclComm_t comm, ncclWindow_t window) {
  return ForgetWindow(comm, window);
}

ncclTeam_t ncclTeamLsa(ncclComm_t comm) {
  int count = 0;
  int rank = 0;
  ncclCommCount(comm, &count);
  ncclCommUserRank(comm, &rank);
  const Lock lock(GetState().mutex);
  return {std::min(count, GetNcclPlan().num_reached), rank, 1};
}

void* ncclGetPeerPointer(ncclWindow_t window, size_t offset, int peer) {
  return window->clique->windows[window->number][peer] + offset;
}
