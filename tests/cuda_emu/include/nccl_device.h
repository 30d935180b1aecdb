// The part of NCCL's device-side API that finds other ranks' memory, with the names of NCCL 2.28. All
// devices reach each other, unless a test plans otherwise.
#pragma once

#include <nccl.h>

struct ncclTeam {
  int nRanks, rank, stride;
};
using ncclTeam_t = ncclTeam;

ncclTeam_t ncclTeamLsa(ncclComm_t comm);

// Called by kernels.
void* ncclGetPeerPointer(ncclWindow_t window, size_t offset, int peer);
