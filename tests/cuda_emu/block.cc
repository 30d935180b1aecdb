// A block's place in the emulator: its shared memory, its fibers, and how it looks in a report.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "tests/cuda_emu/grid_state.h"

namespace jevons::emu {
namespace {

// A block's region: keys for ThreadSanitizer, a guard zone, shared memory, a guard zone.
constexpr int kKeyBytes = 7 * 1024;
constexpr int kGuardBytes = 1024;
constexpr int kRegionBytes = kKeyBytes + kGuardBytes + kMostSmemBytes + kGuardBytes;
constexpr unsigned char kGuardByte = 0xA5;
static_assert((kKeyBytes + kGuardBytes) % 1024 == 0);

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

}  // namespace

void LoadBlock(Block& block, Launch& launch, int64_t number, void (*entry)()) {
  const GridSpec& spec = launch.spec;
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
  block.launch = &launch;
  block.num_ended = 0;
  block.num_polling = 0;
  block.num_outside = 0;
  block.num_early = 0;
  block.num_warps = spec.block / kLanes;
  for (Barrier& barrier : block.barriers) barrier = Barrier{};
  for (int i = 0; i < spec.block; ++i) {
    Thread& thread = block.threads[i];
    if (thread.context.stack == nullptr) StartFiber(thread.context, entry);
    thread.block = &block;
    thread.idx = i;
    thread.lane = i % kLanes;
    thread.warp = &block.warps[i / kLanes];
    thread.where = "runs";
    thread.at = Site{};
    thread.has_waited = false;
  }
  block.ready = 0;
  block.slow = static_cast<uint32_t>(RandomSlow());
  for (int i = 0; i < block.num_warps; ++i) {
    Warp& warp = block.warps[i];
    warp.block = &block;
    warp.threads = block.threads + i * kLanes;
    warp.idx = i;
    warp.arrived = 0;
    warp.polling = 0;
    warp.outside = 0;
    warp.early = 0;
    MakeReady(warp, kAllLanes);
  }
  StartAsync(block);
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

void ForgetBlock(Block& block) {
  block.live = false;
  block.ready = 0;
  Unpoison(block.region, kRegionBytes);
}

std::string IndexText(const Block& block) {
  const dim3& i = block.block_idx;
  return "block (" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) +
         ")";
}

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
