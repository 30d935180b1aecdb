// Barriers, and what the lanes of a warp do together.
#include <bit>
#include <cstring>

#include "tests/cuda_emu/grid_state.h"

namespace jevons::emu {
namespace {

float FromBf16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

[[noreturn]] void MisusedMeeting(const Warp& warp, const char* name, int64_t detail) {
  std::string lanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (warp.arrived >> lane & 1) lanes += (lanes.empty() ? "" : ",") + std::to_string(lane);
  }
  const bool differs = warp.name == name && warp.detail != detail;
  Misuse(std::string("a divergent warp: this lane comes to ") + name +
         (differs ? " with other arguments" : "") + " while lanes " + lanes + " wait in " +
         warp.name + " at " + SiteText(warp.at) + ";");
}

// The warp, all of it, comes to a barrier of the block. True if that ends the phase; the barrier's
// warps, but not this one, are ready then.
bool ArriveAtBarrier(Barrier& barrier, int expected, const char* name) {
  Warp& warp = *RunningThread().warp;
  if (barrier.expected != 0 && barrier.expected != expected) {
    Misuse(std::string(name) + " of " + std::to_string(expected) +
           " threads at a barrier where others came for " + std::to_string(barrier.expected));
  }
  if (barrier.waiting >> warp.idx & 1) Misuse(std::string(name) + ": this warp is there already");
  barrier.expected = expected;
  barrier.arrived += kLanes;
  if (barrier.arrived < expected) return false;
  for (uint32_t waiting = barrier.waiting; waiting != 0; waiting &= waiting - 1) {
    MakeReady(warp.block->warps[std::countr_zero(waiting)], kAllLanes);
  }
  barrier = Barrier{.phase = barrier.phase + 1};
  return true;
}

void SyncBarrier(const char* name, int id, int expected, Site at) {
  Thread& thread = RunningThread();
  Block& block = BlockOf(thread);
  Barrier& barrier = block.barriers[id];
  void* const key = block.BarrierKey(id, barrier.phase);
  Release(key);
  // The last lane waits for the other warps itself; the others it leaves waiting where they are.
  if (Meet(name, id * 4096 + expected, at)) {
    if (ArriveAtBarrier(barrier, expected, name)) {
      MakeReady(*thread.warp, kAllLanes);
    } else {
      barrier.waiting |= 1u << thread.warp->idx;
      Park(name);
    }
  }
  Acquire(key);
}

void CheckNamedBarrier(int id, int num_threads) {
  if (id < 1 || id >= kNumBarriers || num_threads < kLanes || num_threads % kLanes != 0 ||
      num_threads > running->block->block_dim) {
    Misuse("barrier " + std::to_string(id) + " of " + std::to_string(num_threads) +
           " threads in a block of " + std::to_string(running->block->block_dim));
  }
}

}  // namespace

bool Meet(const char* name, int64_t detail, Site at) {
  Thread& thread = RunningThread();
  Warp& warp = *thread.warp;
  thread.at = at;
  if (warp.arrived == 0) {
    warp.name = name;
    warp.detail = detail;
    warp.at = at;
  } else if (warp.name != name || warp.detail != detail || warp.at.line != at.line ||
             (warp.at.file != at.file && std::strcmp(warp.at.file, at.file) != 0)) {
    MisusedMeeting(warp, name, detail);
  }
  warp.arrived |= 1u << thread.lane;
  if (warp.arrived == kAllLanes) {
    warp.arrived = 0;
    ++warp.phase;
    return true;
  }
  Park(name);
  return false;
}

bool MeetAll(const char* name, int64_t detail, Site at) {
  if (!Meet(name, detail, at)) return false;
  MakeReady(*RunningThread().warp, kAllLanes);
  return true;
}

void SyncThreads(Site at) { SyncBarrier("SyncThreads", 0, running->block->block_dim, at); }

void SyncWarp(Site at) {
  const Thread& thread = RunningThread();
  void* const key = BlockOf(thread).WarpKey(*thread.warp, thread.warp->phase);
  Release(key);
  MeetAll("SyncWarp", 0, at);
  Acquire(key);
}

void BarrierSync(int id, int num_threads, Site at) {
  RunningThread().at = at;
  CheckNamedBarrier(id, num_threads);
  SyncBarrier("BarrierSync", id, num_threads, at);
}

void BarrierArrive(int id, int num_threads, Site at) {
  Thread& thread = RunningThread();
  thread.at = at;
  CheckNamedBarrier(id, num_threads);
  Barrier& barrier = BlockOf(thread).barriers[id];
  Release(BlockOf(thread).BarrierKey(id, barrier.phase));
  if (MeetAll("BarrierArrive", id * 4096 + num_threads, at)) {
    ArriveAtBarrier(barrier, num_threads, "BarrierArrive");
  }
}

const uint64_t* Gather(const char* name, uint64_t value, Site at) {
  Thread& thread = RunningThread();
  uint64_t* const values = thread.warp->values[thread.warp->phase % 2];
  values[thread.lane] = value;
  MeetAll(name, 0, at);
  return values;
}

uint64_t Exchange(const char* name, uint64_t value, int source_lane, Site at) {
  return Gather(name, value, at)[source_lane & (kLanes - 1)];
}

void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site at) {
  Thread& thread = RunningThread();
  Warp& warp = *thread.warp;
  float(&sum)[16][8] = warp.d[warp.phase % 2];
  const int g = thread.lane / 4;
  const int c = 2 * (thread.lane % 4);
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half) {
      // Rows g and g + 8, columns from c or from c + 8.
      const uint32_t pair = a[i + 2 * half];
      warp.a[g + 8 * i][c + 8 * half] = FromBf16(pair & 0xFFFF);
      warp.a[g + 8 * i][c + 8 * half + 1] = FromBf16(pair >> 16);
    }
    warp.b[c + 8 * i][g] = FromBf16(b[i] & 0xFFFF);
    warp.b[c + 8 * i + 1][g] = FromBf16(b[i] >> 16);
    sum[g + 8 * i][c] = d[2 * i];
    sum[g + 8 * i][c + 1] = d[2 * i + 1];
  }
  if (MeetAll("MmaBf16", 0, at)) {
    // A product of two bf16 is exact in f32.
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 8; ++n) sum[row][n] += warp.a[row][k] * warp.b[k][n];
      }
    }
  }
  for (int i = 0; i < 2; ++i) {
    d[2 * i] = sum[g + 8 * i][c];
    d[2 * i + 1] = sum[g + 8 * i][c + 1];
  }
}

void LdMatrix4(uint32_t (&r)[4], const void* shared_row, bool transposed, Site at) {
  Thread& thread = RunningThread();
  Warp& warp = *thread.warp;
  thread.at = at;
  CheckShared(shared_row, 16, 16, "LdMatrix4");
  Read(shared_row, 16, __builtin_return_address(0));
  uint32_t(&rows)[kLanes][4] = warp.rows[warp.phase % 2];
  CopyBytes(rows[thread.lane], shared_row, 16);
  MeetAll(transposed ? "LdMatrix4Transposed" : "LdMatrix4", 0, at);
  const int row = thread.lane / 4;
  const int pair = thread.lane % 4;
  for (int i = 0; i < 4; ++i) {
    if (!transposed) {
      r[i] = rows[8 * i + row][pair];
      continue;
    }
    // Column `row` of the matrix, rows 2 * pair and the next.
    const int shift = row % 2 * 16;
    const uint32_t low = rows[8 * i + 2 * pair][row / 2] >> shift & 0xFFFF;
    const uint32_t high = rows[8 * i + 2 * pair + 1][row / 2] >> shift & 0xFFFF;
    r[i] = high << 16 | low;
  }
}

}  // namespace jevons::emu
