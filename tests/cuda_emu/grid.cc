// The threads of a grid, which take turns on one host thread.
#include "tests/cuda_emu/grid.h"

#include <bit>

#include "tests/cuda_emu/grid_state.h"

namespace jevons::emu {

ThreadFacts* running = nullptr;
Grid& grid = *new Grid;
uint64_t begin_key, end_key;

namespace {

// On average. Long enough for the others to come past the next barrier.
constexpr uint32_t kPicksWithSameSlow = 256;

uint64_t fence_key;

// Ends a thread whose grid is dropped.
struct Dropped {};

Thread& PickLane(const Warp& warp) {
  const int step = std::countr_zero(std::rotr(warp.ready, warp.first_lane));
  return warp.threads[(warp.first_lane + step) % kLanes];
}

template <typename Bits>
int PickBit(Bits bits) {
  constexpr int kBits = 8 * sizeof(Bits);
  const int start = grid.Random() % kBits;
  return (start + std::countr_zero(std::rotr(bits, start))) % kBits;
}

template <typename Bits>
int PickReady(Bits ready, Bits& slow) {
  if (grid.OneIn(kPicksWithSameSlow)) slow = static_cast<Bits>(RandomSlow());
  const Bits others = ready & ~slow;
  return PickBit(others != 0 ? others : ready);
}

Warp& PickWarp() {
  Block& block = grid.blocks[PickReady(grid.ready, grid.slow)];
  return block.warps[PickReady(block.ready, block.slow)];
}

void SwitchToAny() {
  Thread& thread = RunningThread();
  Thread& next = PickLane(PickWarp());
  if (&next == &thread) return;
  running = &next;
  SwitchContext(thread.context, next.context);
}

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
      // Otherwise another block or device, or the kernel before, lets it go on.
      const int num_others = block.num_polling + block.num_outside + block.num_early;
      if (num_others == 0) grid.stalled = &block;
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

}  // namespace

uint64_t RandomSlow() {
  const auto bits = [] { return uint64_t{grid.Random()} << 32 | grid.Random(); };
  return grid.OneIn(2) ? 0 : bits() & bits();
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

void RunThreads() {
  Thread& thread = PickLane(PickWarp());
  running = &thread;
  SwitchContext(grid.host, thread.context);
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

void WaitForDevices(const char* where, Site at) {
  Thread& thread = RunningThread();
  thread.at = at;
  thread.warp->outside |= 1u << thread.lane;
  ++BlockOf(thread).num_outside;
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
  if (grid.OneIn(4)) SwitchToAny();
}

void CounterChanged() {
  const Block& block = BlockOf(RunningThread());
  if (grid.OneIn(2)) WakePolling(*block.launch);
  if (!grid.OneIn(4)) return;
  grid.slow |= BitOf(block);
  SwitchToAny();
}

void ThreadFence() {
  Acquire(&fence_key);
  Release(&fence_key);
}

}  // namespace jevons::emu
