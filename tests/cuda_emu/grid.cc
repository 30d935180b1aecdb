#include "tests/cuda_emu/grid.h"

#include <algorithm>
#include <bit>
#include <mutex>
#include <numeric>
#include <utility>

#include "tests/cuda_emu/grid_state.h"

namespace jevons::emu {

ThreadFacts* running = nullptr;
Grid& grid = *new Grid;

namespace {

// The host's edges to the kernel's threads and back, and that of ThreadFence.
// Eight bytes apart: ThreadSanitizer knows no finer keys.
uint64_t begin_key, end_key, fence_key;

// Ends a thread whose grid is dropped.
struct Dropped {};

Thread& PickLane(const Warp& warp) {
  const int step = std::countr_zero(std::rotr(warp.ready, warp.first_lane));
  return warp.threads[(warp.first_lane + step) % kLanes];
}

int PickBit(uint32_t bits) {
  const int start = grid.Random() % 32;
  return (start + std::countr_zero(std::rotr(bits, start))) % 32;
}

Warp& PickWarp() {
  Block& block = grid.blocks[PickBit(grid.ready)];
  return block.warps[PickBit(block.ready)];
}

uint32_t BitOf(const Block& block) { return 1u << (&block - grid.blocks); }

// The running thread goes on when the scheduler picks it again.
void SwitchToHost(Thread& thread) {
  running = nullptr;
  SwitchContext(thread.context, grid.host);
}

// Whether a thread of the block can run, if need be because something asynchronous ends.
bool CanRun(Block& block) {
  while (block.ready == 0) {
    if (block.AllEnded()) return false;
    if (!ProgressAsync(block)) {
      // Otherwise another block, or the kernel before, lets it go on.
      if (block.num_polling == 0 && block.num_early == 0) grid.stalled = &block;
      return false;
    }
  }
  return true;
}

void Next(Thread& thread) {
  Warp* warp = thread.warp;
  if (warp->ready == 0) {
    Block& block = *warp->block;
    block.ready &= ~(1u << warp->idx);
    if (block.ready == 0) grid.ready &= ~BitOf(block);
    if (!CanRun(block)) return SwitchToHost(thread);
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
    const Launch& launch = *BlockOf(thread).launch;
    (*launch.body)();
    if (launch.spec.early && !thread.has_waited) {
      Misuse(
          "a kernel that may begin early, and a thread of it that ends without having called "
          "WaitForKernelBefore;");
    }
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

// Forgets what runs, or what began early, and starts its fibers afresh.
void Abandon(const Launch* launch) {
  for (Block& block : grid.blocks) {
    if (!block.live || block.launch != launch) continue;
    ForgetBlock(block);
    grid.ready &= ~BitOf(block);
    for (int i = 0; i < block.block_dim; ++i) {
      Context& context = block.threads[i].context;
      ReleaseAs(grid.host, context, &end_key);
      StartFiber(context, FiberMain);
    }
  }
}

void BeginBlock(Block& block, Launch& launch) {
  LoadBlock(block, launch, launch.order[launch.num_begun++], FiberMain);
  // What the host wrote, but not what it learnt of other blocks: it has not acquired their keys.
  Release(&begin_key);
}

// Begins blocks up to `residents` that do not wait for others.
void BeginBlocks(Launch& launch, int residents) {
  for (const Block& block : grid.blocks) {
    if (block.live && block.launch == &launch && block.num_polling == 0) --residents;
  }
  for (Block& block : grid.blocks) {
    if (residents <= 0 || launch.num_begun == launch.order.size()) return;
    if (block.live) continue;
    BeginBlock(block, launch);
    --residents;
  }
}

// Lets those look again who wait for other blocks; how many they are.
int WakePolling(const Launch& launch) {
  int num = 0;
  for (Block& block : grid.blocks) {
    if (!block.live || block.launch != &launch || block.num_polling == 0) continue;
    num += std::exchange(block.num_polling, 0);
    for (int i = 0; i < block.num_warps; ++i) {
      Warp& warp = block.warps[i];
      if (warp.polling != 0) MakeReady(warp, std::exchange(warp.polling, 0));
    }
  }
  return num;
}

bool ReportStalled(const char* what, const Block& block) {
  ReportMisuse(what + block.launch->spec.kernel + ", " + IndexText(block) + ":" + WaitsText(block) +
               StalledAsyncText(block));
  return false;
}
bool ReportWaiting(const Launch& launch) {
  for (const Block& block : grid.blocks) {
    if (block.live && block.launch == &launch) {
      return ReportStalled("blocks wait for others that do not come in ", block);
    }
  }
  return false;
}

// Runs whoever can, until nobody can; false where something is wrong.
bool RunReady() {
  while (grid.ready != 0) {
    Thread& thread = PickLane(PickWarp());
    running = &thread;
    SwitchContext(grid.host, thread.context);
    if (grid.dropped) return false;
    if (grid.stalled != nullptr)
      return ReportStalled("threads wait for each other in ", *grid.stalled);
    for (Block& block : grid.blocks) {
      if (!block.live || !block.AllEnded()) continue;
      const std::string wrong = UnloadBlock(block);
      if (wrong.empty()) return true;
      ReportMisuse(wrong + " in " + block.launch->spec.kernel + ", " + IndexText(block));
      return false;
    }
  }
  return true;
}

// Whether the grid ran to its end.
bool RunBlocks(Launch& launch) {
  const int residents = grid.OneIn(4) ? 1 : kMostResidents;
  // When those who wait for others last looked again.
  int64_t parks = 0;
  int64_t polls = 0;
  int num_woken = 0;
  for (;;) {
    const size_t num_begun = launch.num_begun;
    BeginBlocks(launch, residents);
    if (launch.num_begun > num_begun) num_woken = 0;
    if (grid.ready == 0) {
      // Only they have done anything since: nobody ever will.
      if (num_woken > 0 && grid.num_polls - polls == num_woken &&
          grid.num_parks - parks == num_woken) {
        return ReportWaiting(launch);
      }
      parks = grid.num_parks;
      polls = grid.num_polls;
      num_woken = WakePolling(launch);
      if (num_woken == 0) return true;
    }
    if (!RunReady()) return false;
  }
}

std::vector<int64_t> RandomOrder(int64_t num_blocks) {
  std::vector<int64_t> order(static_cast<size_t>(num_blocks));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[grid.Random() % i]);
  return order;
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

std::unique_ptr<Launch> NewLaunch(const GridSpec& spec, const std::function<void()>& body) {
  grid.random = NextRandom();
  grid.dropped = false;
  grid.stalled = nullptr;
  auto launch = std::make_unique<Launch>();
  launch->spec = spec;
  launch->body = &body;
  launch->order = RandomOrder(int64_t{spec.grid.x} * spec.grid.y * spec.grid.z);
  return launch;
}

std::mutex& GridMutex() {
  static std::mutex* const mutex = new std::mutex;
  return *mutex;
}

cudaError_t CheckSpec(const GridSpec& spec) {
  if (spec.block >= kLanes && spec.block <= kMostThreads && spec.block % kLanes == 0 &&
      spec.smem_bytes >= 0 && spec.smem_bytes <= kMostSmemBytes) {
    return cudaSuccess;
  }
  ReportMisuse("a launch of " + spec.kernel + " with " + std::to_string(spec.block) +
               " threads a block and " + std::to_string(spec.smem_bytes) +
               " bytes of shared memory");
  return cudaErrorInvalidConfiguration;
}

// The kernel before has ended.
void GoOn(Launch& launch) {
  launch.waits = false;
  for (Block& block : grid.blocks) {
    if (!block.live || block.launch != &launch) continue;
    block.num_early = 0;
    for (int i = 0; i < block.num_warps; ++i) {
      Warp& warp = block.warps[i];
      if (warp.early != 0) MakeReady(warp, std::exchange(warp.early, 0));
    }
  }
}

}  // namespace

cudaError_t BeginGrid(const GridSpec& spec, const std::function<void()>& thread_body) {
  const std::lock_guard lock(GridMutex());
  if (grid.early != nullptr) return cudaSuccess;
  const cudaError_t error = CheckSpec(spec);
  if (error != cudaSuccess) return error;
  grid.early = NewLaunch(spec, thread_body);
  grid.early->waits = true;
  AdoptHost(grid.host);
  BeginBlocks(*grid.early, grid.OneIn(2) ? 1 : kMostResidents);
  bool good = true;
  while (good && grid.ready != 0) good = RunReady();
  if (good) return cudaSuccess;
  Abandon(grid.early.get());
  grid.early = nullptr;
  return cudaErrorLaunchFailure;
}

cudaError_t RunGrid(const GridSpec& spec, const std::function<void()>& thread_body) {
  const cudaError_t error = CheckSpec(spec);
  if (error != cudaSuccess) return error;
  const std::lock_guard lock(GridMutex());
  std::unique_ptr<Launch> launch = NewLaunch(spec, thread_body);
  if (grid.early != nullptr && grid.early->body == &thread_body) {
    launch = std::move(grid.early);
    GoOn(*launch);
  }
  AdoptHost(grid.host);
  const bool good = RunBlocks(*launch);
  if (!good) Abandon(launch.get());
  Acquire(&end_key);
  return good ? cudaSuccess : cudaErrorLaunchFailure;
}

void ForgetEarlyGrid() {
  const std::lock_guard lock(GridMutex());
  if (grid.early == nullptr) return;
  AdoptHost(grid.host);
  Abandon(grid.early.get());
  grid.early = nullptr;
}

std::string SiteText(Site at) {
  if (at.file == nullptr) return "the start";
  return std::string(at.file) + ":" + std::to_string(at.line);
}

std::string WhereInKernel() {
  if (running == nullptr) return "";
  const Thread& thread = RunningThread();
  const Block& block = BlockOf(thread);
  return " in " + block.launch->spec.kernel + " " + IndexText(block) + " thread " +
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
  ++grid.num_parks;
  Next(thread);
}

void MakeReady(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  warp.first_lane = grid.Random() % kLanes;
  warp.block->ready |= 1u << warp.idx;
  grid.ready |= BitOf(*warp.block);
}

void WaitForOthers(const char* where, Site at) {
  Thread& thread = RunningThread();
  thread.at = at;
  thread.warp->polling |= 1u << thread.lane;
  ++BlockOf(thread).num_polling;
  ++grid.num_polls;
  Park(where);
}

void WaitForKernelBefore(Site at) {
  Thread& thread = RunningThread();
  thread.at = at;
  thread.has_waited = true;
  if (!BlockOf(thread).launch->waits) return;
  // What was asked for before has been read.
  EndCpAsyncOfThread(thread);
  thread.warp->early |= 1u << thread.lane;
  ++BlockOf(thread).num_early;
  Park("WaitForKernelBefore");
  Acquire(&end_key);
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

}  // namespace jevons::emu
