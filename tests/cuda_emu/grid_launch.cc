// Launches: which of their blocks run, and how far.
#include <algorithm>
#include <iterator>
#include <mutex>
#include <numeric>
#include <utility>

#include "tests/cuda_emu/grid_state.h"

namespace jevons::emu {
namespace {

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

// Blocks of the launch that have begun and not ended.
int NumLive(const Launch* launch) {
  return static_cast<int>(
      std::count_if(std::begin(grid.blocks), std::end(grid.blocks),
                    [&](const Block& block) { return block.live && block.launch == launch; }));
}

bool WaitsOutside(const Launch& launch) {
  return std::any_of(std::begin(grid.blocks), std::end(grid.blocks), [&](const Block& block) {
    return block.live && block.launch == &launch && block.num_outside > 0;
  });
}

// Begins blocks up to `residents` that do not wait for others.
void BeginBlocks(Launch& launch, int residents) {
  for (const Block& block : grid.blocks) {
    const bool waits = block.num_polling + block.num_outside > 0;
    if (block.live && block.launch == &launch && !waits) --residents;
  }
  const bool is_early = grid.early.get() == &launch;
  const int num_early = is_early ? 0 : NumLive(grid.early.get());
  const int room = WaitsOutside(launch) ? kMostOutside : kMostBlocks;
  residents = std::min(residents, room - NumLive(&launch) - num_early);
  for (Block& block : grid.blocks) {
    if (residents <= 0 || launch.num_begun == launch.order.size()) return;
    if (block.live) continue;
    BeginBlock(block, launch);
    --residents;
  }
}

// Lets those look again who wait for other devices.
void WakeOutside(const Launch& launch) {
  for (Block& block : grid.blocks) {
    if (!block.live || block.launch != &launch) continue;
    block.num_outside = 0;
    for (int i = 0; i < block.num_warps; ++i) {
      Warp& warp = block.warps[i];
      if (warp.outside != 0) MakeReady(warp, std::exchange(warp.outside, 0));
    }
  }
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
    RunThreads();
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

enum class End { kAll, kWrong, kWaits };

// Runs the grid as far as it gets without other devices.
End RunBlocks(Launch& launch) {
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
      // Only they have done anything since: nobody of this grid ever will.
      if (num_woken > 0 && grid.num_polls - polls == num_woken &&
          grid.num_parks - parks == num_woken) {
        if (WaitsOutside(launch)) return End::kWaits;
        ReportWaiting(launch);
        return End::kWrong;
      }
      parks = grid.num_parks;
      polls = grid.num_polls;
      num_woken = WakePolling(launch);
      if (num_woken == 0) return WaitsOutside(launch) ? End::kWaits : End::kAll;
    }
    if (!RunReady()) return End::kWrong;
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
  launch->device = RunningDevice();
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

// What waits for other devices leaves room for what they run.
bool KeepWaiting(std::unique_ptr<Launch> launch) {
  grid.waiting.push_back(std::move(launch));
  int num = 0;
  for (const auto& waiting : grid.waiting) num += NumLive(waiting.get());
  if (num <= kMostWaiting) return true;
  ReportMisuse(std::to_string(num) + " blocks wait for other devices, the last in " +
               grid.waiting.back()->spec.kernel + ": the emulator has room for " +
               std::to_string(kMostWaiting));
  return false;
}

// The launch of this body where it has begun and waits for other devices; else null.
std::unique_ptr<Launch> TakeWaiting(const std::function<void()>& body) {
  for (auto& launch : grid.waiting) {
    if (launch->body != &body) continue;
    std::unique_ptr<Launch> found = std::move(launch);
    std::erase(grid.waiting, nullptr);
    return found;
  }
  return nullptr;
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
  Acquire(&end_key);
  grid.early = nullptr;
  return cudaErrorLaunchFailure;
}

cudaError_t RunGrid(const GridSpec& spec, const std::function<void()>& thread_body) {
  const cudaError_t error = CheckSpec(spec);
  if (error != cudaSuccess) return error;
  const std::lock_guard lock(GridMutex());
  std::unique_ptr<Launch> launch = TakeWaiting(thread_body);
  if (launch != nullptr) {
    WakeOutside(*launch);
  } else {
    launch = NewLaunch(spec, thread_body);
  }
  if (grid.early != nullptr && grid.early->body == &thread_body) {
    launch = std::move(grid.early);
    GoOn(*launch);
  }
  AdoptHost(grid.host);
  const Launch* const key = launch.get();
  End end = RunBlocks(*launch);
  if (end == End::kWaits && !KeepWaiting(std::move(launch))) {
    launch = TakeWaiting(thread_body);
    end = End::kWrong;
  }
  if (end == End::kWrong) Abandon(key);
  Acquire(&end_key);
  if (end == End::kWaits) return cudaErrorNotReady;
  return end == End::kAll ? cudaSuccess : cudaErrorLaunchFailure;
}

bool IsWaiting(const std::function<void()>& thread_body) {
  const std::lock_guard lock(GridMutex());
  return std::any_of(grid.waiting.begin(), grid.waiting.end(),
                     [&](const auto& launch) { return launch->body == &thread_body; });
}

void ForgetGrids(int device) {
  const std::lock_guard lock(GridMutex());
  AdoptHost(grid.host);
  if (grid.early != nullptr) Abandon(grid.early.get());
  grid.early = nullptr;
  for (const auto& launch : grid.waiting) {
    if (launch->device == device) Abandon(launch.get());
  }
  Acquire(&end_key);
  std::erase_if(grid.waiting, [&](const auto& launch) { return launch->device == device; });
}

}  // namespace jevons::emu
