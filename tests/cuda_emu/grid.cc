#include "tests/cuda_emu/grid.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "tests/cuda_emu/grid_state.h"

namespace jevons::emu {

ThreadFacts* running = nullptr;
Grid& grid = *new Grid;

namespace {

// A block's region: keys for ThreadSanitizer, a guard zone, shared memory, a guard zone.
constexpr int kKeyBytes = 7 * 1024;
constexpr int kGuardBytes = 1024;
constexpr int kMostSmemBytes = 256 * 1024;
constexpr int kRegionBytes = kKeyBytes + kGuardBytes + kMostSmemBytes + kGuardBytes;
constexpr unsigned char kGuardByte = 0xA5;
static_assert((kKeyBytes + kGuardBytes) % 1024 == 0);

// The host's edges to the kernel's threads and back, and that of ThreadFence.
// Eight bytes apart: ThreadSanitizer knows no finer keys.
uint64_t begin_key, end_key, fence_key;

// Ends a thread whose grid is dropped.
struct Dropped {};

void MapRegion(Block& block) {
  void* const place = block.region;
  if (place != nullptr) munmap(place, kRegionBytes);
  void* const region =
      mmap(place, kRegionBytes, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (place ? MAP_FIXED : 0), -1, 0);
  if (region == MAP_FAILED) {
    std::perror("CUDA emulator: no memory for a block");
    std::abort();
  }
  block.region = static_cast<unsigned char*>(region);
  block.smem = block.region + kKeyBytes + kGuardBytes;
}

std::string IndexText(const Block& block) {
  const dim3& i = block.block_idx;
  return "block (" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) +
         ")";
}

// Threads and what they wait in, one group a line: "threads 0-31, 64-95: SyncThreads at x.cu:7".
std::string WaitsText(const Block& block) {
  std::map<std::string, std::string> groups;
  for (int first = 0; first < block.block_dim;) {
    const auto text = [&](int i) {
      const Thread& t = block.threads[i];
      return std::string(t.where) + (t.at.file == nullptr ? "" : " at " + SiteText(t.at));
    };
    const std::string where = text(first);
    int last = first;
    while (last + 1 < block.block_dim && text(last + 1) == where) ++last;
    std::string& list = groups[where];
    list += (list.empty() ? "" : ", ") + std::to_string(first);
    if (last > first) list += "-" + std::to_string(last);
    first = last + 1;
  }
  std::string text;
  for (const auto& [where, list] : groups) text += "\n  threads " + list + ": " + where;
  return text;
}

Thread& PickLane(const Warp& warp) {
  const int step = std::countr_zero(std::rotr(warp.ready, warp.first_lane));
  return warp.threads[(warp.first_lane + step) % kLanes];
}

Warp& PickWarp() {
  const int start = grid.Random() % 64;
  const int bit = (start + std::countr_zero(std::rotr(grid.ready, start))) % 64;
  return grid.blocks[bit / kMostWarps].warps[bit % kMostWarps];
}

// The running thread goes on when the scheduler picks it again.
void SwitchToHost(Thread& thread) {
  running = nullptr;
  SwitchContext(thread.context, grid.host);
}

// Whether a thread of the block can run, if need be because something asynchronous ends.
bool CanRun(Block& block) {
  while ((grid.ready & block.warp_bits) == 0) {
    if (block.AllEnded()) return false;
    if (!ProgressAsync(block)) {
      grid.stalled = &block;
      return false;
    }
  }
  return true;
}

void Next(Thread& thread) {
  Warp* warp = thread.warp;
  if (warp->ready == 0) {
    grid.ready &= ~warp->bit;
    if (!CanRun(*warp->block)) return SwitchToHost(thread);
    warp = &PickWarp();
  } else if (grid.OneIn(64)) {
    warp = &PickWarp();
  }
  Thread& next = PickLane(*warp);
  if (&next == &thread) return;
  running = &next;
  SwitchContext(thread.context, next.context);
}

// Runs the body once; false if the thread was dropped. The exception must be over before the stack
// is left.
bool RunBody(Thread& thread) {
  try {
    (*grid.body)();
    EndAsyncOfThread(thread);
    return true;
  } catch (const Dropped&) {
    return false;
  }
}

void FiberMain() {
  FiberStarted();
  for (;;) {
    Thread& thread = RunningThread();
    Acquire(&begin_key);
    const bool ended = RunBody(thread);
    Release(&end_key);
    ++BlockOf(thread).num_ended;
    thread.at = Site{};
    if (ended) {
      Park("has ended");
    } else {
      thread.where = "was dropped";
      grid.dropped = true;
      SwitchToHost(thread);
    }
  }
}

void LoadBlock(Block& block, const GridSpec& spec, int64_t number) {
  if (block.region == nullptr || UnderTsan()) MapRegion(block);
  block.block_idx = dim3(static_cast<unsigned>(number % spec.grid.x),
                         static_cast<unsigned>(number / spec.grid.x % spec.grid.y),
                         static_cast<unsigned>(number / spec.grid.x / spec.grid.y));
  block.grid_dim = spec.grid;
  block.block_dim = spec.block;
  block.smem_bytes = spec.smem_bytes;
  std::memset(block.smem - kGuardBytes, kGuardByte, kGuardBytes);
  std::memset(block.smem, 0xFF, spec.smem_bytes);
  std::memset(block.smem + spec.smem_bytes, kGuardByte, kGuardBytes);
  Poison(block.smem - kGuardBytes, kGuardBytes);
  Poison(block.smem + spec.smem_bytes, kGuardBytes);
  block.live = true;
  block.num_ended = 0;
  block.num_warps = spec.block / kLanes;
  for (Barrier& barrier : block.barriers) barrier = Barrier{};
  for (int i = 0; i < spec.block; ++i) {
    Thread& thread = block.threads[i];
    if (thread.context.stack == nullptr) StartFiber(thread.context, FiberMain);
    thread.block = &block;
    thread.idx = i;
    thread.lane = i % kLanes;
    thread.warp = &block.warps[i / kLanes];
    thread.where = "runs";
    thread.at = Site{};
  }
  const int slot = static_cast<int>(&block - grid.blocks);
  block.warp_bits = 0;
  for (int i = 0; i < block.num_warps; ++i) {
    Warp& warp = block.warps[i];
    warp.block = &block;
    warp.threads = block.threads + i * kLanes;
    warp.idx = i;
    warp.bit = uint64_t{1} << (slot * kMostWarps + i);
    warp.arrived = 0;
    block.warp_bits |= warp.bit;
    MakeReady(warp, kAllLanes);
  }
  StartAsync(block);
  // What the host wrote, but not what it learnt of other blocks: it has not acquired their keys.
  Release(&begin_key);
}

// What is wrong with a block that has ended, or "".
std::string UnloadBlock(Block& block) {
  block.live = false;
  Unpoison(block.region, kRegionBytes);
  const auto whole = [](const unsigned char* guard) {
    return std::all_of(guard, guard + kGuardBytes, [](unsigned char c) { return c == kGuardByte; });
  };
  if (!whole(block.smem - kGuardBytes) || !whole(block.smem + block.smem_bytes)) {
    return "a write outside of the block's " + std::to_string(block.smem_bytes) +
           " bytes of shared memory";
  }
  for (int i = 1; i < kNumBarriers; ++i) {
    if (block.barriers[i].arrived != 0) {
      return "barrier " + std::to_string(i) + " was left with " +
             std::to_string(block.barriers[i].arrived) + " of " +
             std::to_string(block.barriers[i].expected) + " threads";
    }
  }
  return EndAsyncOfBlock(block);
}

// Forgets what runs, and starts its fibers afresh.
void Abandon() {
  for (Block& block : grid.blocks) {
    if (!block.live) continue;
    block.live = false;
    Unpoison(block.region, kRegionBytes);
    for (int i = 0; i < block.block_dim; ++i) {
      Context& context = block.threads[i].context;
      ReleaseAs(grid.host, context, &end_key);
      StartFiber(context, FiberMain);
    }
  }
  grid.ready = 0;
}

// Whether the grid ran to its end.
bool RunBlocks(const GridSpec& spec) {
  std::vector<int64_t> order(size_t{spec.grid.x} * spec.grid.y * spec.grid.z);
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[grid.Random() % i]);
  const int residents = grid.OneIn(4) ? 1 : kMostBlocks;
  size_t next = 0;
  for (;;) {
    for (int i = 0; i < residents; ++i) {
      if (!grid.blocks[i].live && next < order.size()) {
        LoadBlock(grid.blocks[i], spec, order[next++]);
      }
    }
    if (grid.ready == 0) return true;
    Thread& thread = PickLane(PickWarp());
    running = &thread;
    SwitchContext(grid.host, thread.context);
    if (grid.dropped) return false;
    if (grid.stalled != nullptr) {
      ReportMisuse("threads wait for each other in " + grid.kernel + ", " +
                   IndexText(*grid.stalled) + ":" + WaitsText(*grid.stalled) +
                   StalledAsyncText(*grid.stalled));
      return false;
    }
    for (Block& block : grid.blocks) {
      if (!block.live || !block.AllEnded()) continue;
      const std::string wrong = UnloadBlock(block);
      if (wrong.empty()) continue;
      ReportMisuse(wrong + " in " + grid.kernel + ", " + IndexText(block));
      return false;
    }
  }
}

// Launches since the seed last changed: each has its own order.
uint64_t NextRandom() {
  static uint64_t last_seed = 0;
  static uint64_t num_launches = 0;
  if (Seed() != last_seed) num_launches = 0;
  last_seed = Seed();
  uint64_t z = last_seed + ++num_launches * 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (z ^ z >> 31) | 1;
}

}  // namespace

cudaError_t RunGrid(const GridSpec& spec, const std::function<void()>& thread_body) {
  if (spec.block < kLanes || spec.block > kMostThreads || spec.block % kLanes != 0 ||
      spec.smem_bytes < 0 || spec.smem_bytes > kMostSmemBytes) {
    ReportMisuse("a launch of " + spec.kernel + " with " + std::to_string(spec.block) +
                 " threads a block and " + std::to_string(spec.smem_bytes) +
                 " bytes of shared memory");
    return cudaErrorInvalidConfiguration;
  }
  static std::mutex* const mutex = new std::mutex;
  const std::lock_guard lock(*mutex);
  grid.kernel = spec.kernel;
  grid.body = &thread_body;
  grid.random = NextRandom();
  grid.dropped = false;
  grid.stalled = nullptr;
  AdoptHost(grid.host);
  const bool good = RunBlocks(spec);
  if (!good) Abandon();
  Acquire(&end_key);
  return good ? cudaSuccess : cudaErrorLaunchFailure;
}

std::string SiteText(Site at) {
  if (at.file == nullptr) return "the start";
  return std::string(at.file) + ":" + std::to_string(at.line);
}

std::string WhereInKernel() {
  if (running == nullptr) return "";
  const Thread& thread = RunningThread();
  return " in " + grid.kernel + " " + IndexText(BlockOf(thread)) + " thread " +
         std::to_string(thread.idx) + " at " + SiteText(thread.at);
}

void DropGrid() {
  if (running != nullptr) throw Dropped{};
}

void Misuse(const std::string& text) {
  ReportMisuse(text);
  throw Dropped{};
}

void Park(const char* where) {
  Thread& thread = RunningThread();
  thread.where = where;
  thread.warp->ready &= ~(1u << thread.lane);
  Next(thread);
}

void MakeReady(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  warp.first_lane = grid.Random() % kLanes;
  grid.ready |= warp.bit;
}

void Yield() {
  if (!grid.OneIn(4)) return;
  Thread& thread = RunningThread();
  Thread& next = PickLane(PickWarp());
  if (&next == &thread) return;
  running = &next;
  SwitchContext(thread.context, next.context);
}

void ThreadFence() {
  Acquire(&fence_key);
  Release(&fence_key);
}

int64_t CheckShared(const void* shared, int64_t bytes, int alignment, const char* what) {
  const Block& block = BlockOf(RunningThread());
  const int64_t offset = static_cast<const unsigned char*>(shared) - block.smem;
  if (offset < 0 || offset + bytes > block.smem_bytes) {
    Misuse(std::string(what) + ": " + std::to_string(bytes) + " bytes at offset " +
           std::to_string(offset) + " are not within the block's " +
           std::to_string(block.smem_bytes) + " bytes of shared memory");
  }
  if (offset % alignment != 0) {
    Misuse(std::string(what) + ": the shared address at offset " + std::to_string(offset) +
           " is not aligned to " + std::to_string(alignment) + " bytes");
  }
  return offset;
}

void* SharedMemory(int64_t bytes, Site at) {
  RunningThread().at = at;
  const Block& block = BlockOf(RunningThread());
  if (bytes > block.smem_bytes) {
    Misuse("SharedMemory of " + std::to_string(bytes) + " bytes where the launch gave " +
           std::to_string(block.smem_bytes));
  }
  return block.smem;
}

}  // namespace jevons::emu
