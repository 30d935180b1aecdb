// What the parts of the grid share. One host thread runs all of it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/fiber.h"
#include "tests/cuda_emu/grid.h"
#include "tests/cuda_emu/sanitizer.h"

namespace jevons::emu {

constexpr int kLanes = 32;
constexpr int kMostThreads = 1024;
constexpr int kMostWarps = kMostThreads / kLanes;
// In all: those that run, that wait for others, and that began early.
constexpr int kMostBlocks = 22;
constexpr int kMostOutside = 8;   // of a launch whose blocks wait for other devices
constexpr int kMostWaiting = 16;  // besides: of launches that wait for other devices
constexpr int kNumPlaces = kMostBlocks + kMostWaiting;
static_assert(kNumPlaces <= 64);   // Grid::ready
constexpr int kMostResidents = 2;  // of the running launch, without those that wait for others
constexpr int kMostSmemBytes = 256 * 1024;
constexpr int kNumBarriers = 16;
constexpr uint32_t kAllLanes = ~0u;

struct Block;
struct Warp;

// A copy of one CpAsync or BulkCopy that is under way.
struct Copy {
  unsigned char* shared = nullptr;
  const void* global = nullptr;
  int32_t size = 0;   // of the destination
  int32_t bytes = 0;  // to copy; the rest is zeroed
  int64_t group = 0;  // of CpAsync
  int barrier = -1;   // of BulkCopy
  void* pc = nullptr;
};

// What the hardware keeps in the words of an MBarrier.
struct MBarrierState {
  const void* address = nullptr;
  int count = 0;
  bool fenced = false;  // its initialisation is known to bulk copies
  int missing = 0;      // arrivals
  int64_t bytes = 0;    // expected and not yet copied
  uint32_t phase = 0;
  uint32_t waiting[kMostWarps] = {};  // lanes
};
constexpr int kMostMBarriers = 64;

// A wgmma of one warp that is under way: its 16 rows of the result. Objects are used again and
// never freed, as ThreadSanitizer would take that for a race of the threads.
struct Wgmma {
  int n = 0;
  bool accumulate = false;
  bool transposed_b = false;
  bool e4m3 = false;
  bool a_shared = false;
  uint64_t a_descriptor = 0;
  uint64_t b_descriptor = 0;
  int64_t group = 0;
  void* pc = nullptr;
  uint32_t a[kLanes][4] = {};
  float* d[kLanes] = {};
  float before[kLanes][128] = {};  // where no earlier one under way gives it
};
constexpr int kMostWgmmas = 64;
// The last calls of a warpgroup.
struct WgmmaCall {
  int64_t number = -1;
  uint64_t digest = 0;
};
constexpr int kKnownWgmmas = 256;

struct Thread : ThreadFacts {
  Context context;
  Warp* warp = nullptr;
  int lane = 0;
  const char* where = nullptr;  // what it waits in, for reports; null: it can run
  Site at;                      // of its last call of a wrapper

  std::vector<Copy> copies;  // of CpAsync, in the order of issue
  int64_t group = 0;         // of the copies that come next
  uint32_t num_written = 0;  // copies of CpAsync that were done
  uint32_t num_fenced = 0;   // of them before the last FenceProxyAsync
  bool has_waited = false;   // for the kernel before
};

struct Warp {
  Block* block = nullptr;
  Thread* threads = nullptr;
  int idx = 0;
  uint32_t ready = 0;    // lanes that can run
  int first_lane = 0;    // where the search for the next one starts
  uint32_t polling = 0;  // lanes in WaitForOthers
  uint32_t outside = 0;  // lanes in WaitForDevices
  uint32_t early = 0;    // lanes in WaitForKernelBefore

  // The collective at which lanes wait for the rest of the warp.
  const char* name = nullptr;
  int64_t detail = 0;
  Site at;
  uint32_t arrived = 0;
  uint32_t phase = 0;  // collectives that are over

  // What the lanes brought, by parity of the phase: a lane may be one ahead of another.
  uint64_t values[2][kLanes];
  float d[2][16][8];
  float a[16][16];
  float b[16][8];
  uint32_t rows[2][kLanes][4];

  Wgmma* wgmmas[kMostWgmmas] = {};  // in the order of issue; behind them objects for later ones
  int num_pending = 0;
  int64_t wgmma_group = 0;  // of those that come next
  int64_t num_wgmmas = 0;   // all that were issued
  bool wgmma_fenced = false;
  int registers = 0;  // of a thread; 0: as many as it began with
};

struct Barrier {
  int expected = 0;  // threads; 0: nobody has come in this phase
  int arrived = 0;
  uint32_t waiting = 0;  // warps
  uint32_t phase = 0;
};

// A launch of which some blocks have begun.
struct Launch {
  GridSpec spec;
  const std::function<void()>* body = nullptr;
  std::vector<int64_t> order;  // of its blocks
  size_t num_begun = 0;
  bool waits = false;  // the launch before it has not ended
  int device = 0;
};

struct Block : BlockFacts {
  bool live = false;
  Launch* launch = nullptr;
  int num_warps = 0;
  int num_ended = 0;
  int num_polling = 0;
  int num_outside = 0;
  int num_early = 0;
  uint32_t ready = 0;  // warps that have a ready lane
  uint32_t slow = 0;   // warps that run when no other one can
  unsigned char* region = nullptr;
  Barrier barriers[kNumBarriers];
  Warp warps[kMostWarps];
  Thread threads[kMostThreads];

  // For each four bytes of shared memory.
  struct Word {
    bool written = false;  // a copy under way writes it
    uint16_t readers = 0;  // wgmmas under way that read it
    uint16_t writer = 0;   // the thread that wrote it by CpAsync, plus 1
    uint32_t number = 0;   // Thread::num_written at that time
  };
  std::vector<Word> words;
  std::vector<MBarrierState> mbarriers;
  std::vector<Copy> bulk_copies;
  WgmmaCall wgmma_calls[kMostWarps / 4][kKnownWgmmas];

  bool AllEnded() const { return num_ended == block_dim; }
  // A key for Acquire and Release that this block alone uses.
  void* Key(int i) const { return region + 16 * i; }
  void* BarrierKey(int id, uint32_t phase) const { return Key(2 * id + phase % 2); }
  void* WarpKey(const Warp& warp, uint32_t phase) const {
    return Key(2 * (kNumBarriers + warp.idx) + phase % 2);
  }
  void* MBarrierKey(int i, uint32_t phase) const {
    return Key(2 * (kNumBarriers + kMostWarps + i) + phase % 2);
  }
};

struct Grid {
  std::unique_ptr<Launch> early;                 // whose blocks wait for the launch before it
  std::vector<std::unique_ptr<Launch>> waiting;  // for other devices or the host
  Context host;
  uint64_t ready = 0;  // blocks that have a ready warp
  uint64_t slow = 0;   // blocks that run when no other one can
  uint64_t random = 0;
  int64_t num_parks = 0;
  int64_t num_polls = 0;
  bool dropped = false;      // a thread has reported a misuse
  Block* stalled = nullptr;  // a block whose threads wait for each other
  Block blocks[kNumPlaces];

  uint32_t Random() {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    return static_cast<uint32_t>(random >> 32);
  }
  bool OneIn(uint32_t n) { return Random() % n == 0; }
};
extern Grid& grid;

// Edges from the host to the kernel's threads, and back. Eight bytes apart: ThreadSanitizer knows no
// finer keys.
extern uint64_t begin_key, end_key;

// grid_launch.cc. Lets those look again who wait for other blocks; how many they are.
int WakePolling(const Launch& launch);
// grid.cc. What a fiber begins with: it runs the body of its launch, for one block after the other.
void FiberMain();
// grid.cc. Which warps or blocks fall behind, or none.
uint64_t RandomSlow();
// grid.cc. Runs threads that can run until none can, a block has ended, or something is wrong.
void RunThreads();

inline uint64_t BitOf(const Block& block) { return uint64_t{1} << (&block - grid.blocks); }
inline Thread& RunningThread() { return *static_cast<Thread*>(running); }
inline Block& BlockOf(const Thread& thread) { return *thread.warp->block; }

// block.cc. Puts a block of the launch into a free place, all of its threads ready; `entry` is what
// a fiber begins with.
void LoadBlock(Block& block, Launch& launch, int64_t number, void (*entry)());
// What is wrong with a block that has ended, or "".
std::string UnloadBlock(Block& block);
// Forgets a block that has not ended.
void ForgetBlock(Block& block);
std::string IndexText(const Block& block);
// Threads and what they wait in, one group a line: "threads 0-31, 64-95: SyncThreads at x.cu:7".
std::string WaitsText(const Block& block);

// Reports what the running thread did wrong and drops the grid.
[[noreturn]] void Misuse(const std::string& text);

// Lets others run until something makes the running thread ready again. `where` says what it waits
// in.
void Park(const char* where);
void MakeReady(Warp& warp, uint32_t lanes);

// The running lane comes to a collective; true for the last one of the warp. The others wait until
// they are made ready, by the last one or by something that it left them to.
bool Meet(const char* name, int64_t detail, Site at);
// Meet, and the last one makes all ready.
bool MeetAll(const char* name, int64_t detail, Site at);

// A misuse unless [shared, shared + bytes) is the block's shared memory; its offset there.
int64_t CheckShared(const void* shared, int64_t bytes, int alignment, const char* what);
// The shared address of the block's first byte, as descriptors and SharedAddress have it.
constexpr int64_t kFirstSharedAddress = 1024;

std::string SiteText(Site at);

// async.cc and wgmma.cc: at the start of a block, when nothing in it can run, at the end of a thread
// and of a block.
void StartAsync(Block& block);
bool ProgressAsync(Block& block);  // true: a thread became ready
void EndAsyncOfThread(Thread& thread);
void EndCpAsyncOfThread(Thread& thread);  // its copies, now
void EndWgmmaOfThread(Thread& thread);
std::string EndAsyncOfBlock(const Block& block);  // what is wrong, or ""
std::string EndWgmmaOfBlock(const Block& block);
std::string StalledAsyncText(const Block& block);  // what threads of the block wait for

// As memcpy and memset, but ThreadSanitizer does not see them.
inline void CopyBytes(void* to, const void* from, int64_t bytes) {
  auto* t = static_cast<unsigned char*>(to);
  auto* f = static_cast<const unsigned char*>(from);
  for (; bytes >= 8; bytes -= 8, t += 8, f += 8) {
    uint64_t word;
    __builtin_memcpy(&word, f, 8);
    asm volatile("" : "+r"(word));
    __builtin_memcpy(t, &word, 8);
  }
  for (; bytes > 0; --bytes) {
    unsigned char byte = *f++;
    asm volatile("" : "+r"(byte));
    *t++ = byte;
  }
}
inline void FillBytes(void* to, unsigned char value, int64_t bytes) {
  auto* t = static_cast<unsigned char*>(to);
  for (; bytes >= 8; bytes -= 8, t += 8) {
    uint64_t word = value * 0x0101010101010101u;
    asm volatile("" : "+r"(word));
    __builtin_memcpy(t, &word, 8);
  }
  for (; bytes > 0; --bytes) {
    asm volatile("" : "+r"(value));
    *t++ = value;
  }
}

}  // namespace jevons::emu
