// Kernels that carry an exchange out by themselves: each rank stores its bytes where the receiving
// rank wants them. Results are cudaError_t.
#pragma once

#include <cstdint>

namespace jevons {

// Ranks whose devices reach each other's memory: of an NVLink domain.
inline constexpr int32_t kMostPeers = 72;

// The first bytes of what a rank shares with the others: one for each, written by that one.
struct PeerSlot {
  uint64_t ready = 0;    // the last exchange for which the peer waits for this rank's bytes
  uint64_t offset = 0;   // where it wants them, from the begin of what it shares
  uint64_t bytes = 0;    // how many it expects
  uint64_t arrived = 0;  // the last exchange of which the peer's bytes are here
};

// In host memory that the device writes to.
struct PeerReport {
  uint32_t stop = 0;   // not 0: no kernel waits any more
  uint32_t wrong = 0;  // 1 + the first peer that expects other than it is sent; 0: none
  uint64_t sent = 0, expected = 0;
  uint32_t missing[kMostPeers] = {};  // 1: the peer has been waited for for long
};

// In device memory of the rank alone.
struct PeerState {
  uint64_t number = 0;            // exchanges that have begun
  char* shared[kMostPeers] = {};  // what each peer shares
  char* place[kMostPeers] = {};   // where each peer wants its bytes; null: nowhere
};

struct PeerExchangeParams {
  struct Part {
    int64_t send_offset = 0, send_bytes = 0;
    int64_t recv_offset = 0, recv_bytes = 0;  // the offset from the begin of what is shared
  };
  const char* send = nullptr;
  Part parts[kMostPeers];
  const int32_t* row_keys = nullptr;  // of AllToAllArgs
  int64_t row_bytes = 0;
  const PeerSlot* slots = nullptr;  // at the begin of what this rank shares
  PeerState* state = nullptr;
  PeerReport* report = nullptr;
  int32_t rank = 0;
  int32_t num_ranks = 1;
};

// Fills state->shared, unless it is told to stop. `window`: an ncclWindow_t.
int LaunchFindPeers(void* window, int32_t num_ranks, PeerState* state, const PeerReport* report,
                    void* stream);

// Queues three kernels; all ranks queue the same exchanges in the same order. The first says to each
// peer where its bytes are wanted and waits to hear the same; the second stores; the third tells each
// peer that its bytes are there, and waits for those of all. None waits for a kernel of its own device.
// Sizes that do not fit are reported, and stop this rank.
int LaunchPeerExchange(const PeerExchangeParams& params, void* stream);

}  // namespace jevons
