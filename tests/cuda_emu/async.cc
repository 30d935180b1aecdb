// Copies to shared memory that end later than they were asked for: as late as the hardware may, and
// now and then earlier. Until then their bytes in shared memory are NaN.
#include <algorithm>

#include "tests/cuda_emu/grid_state.h"

namespace jevons::emu {
namespace {

constexpr int kWordBytes = 4;
constexpr size_t kMostBulkCopies = 1024;
// The upper half of an initialised MBarrier; the lower half is its number.
constexpr uint64_t kMBarrierMark = 0x4D42u << 16;

bool Aligned(const void* address, int alignment) {
  return reinterpret_cast<uintptr_t>(address) % alignment == 0;
}

template <typename Change>
void ForWords(Block& block, const void* shared, int64_t bytes, Change change) {
  const int64_t first = (static_cast<const unsigned char*>(shared) - block.smem) / kWordBytes;
  for (int64_t i = first; i < first + bytes / kWordBytes; ++i) change(block.words[i]);
}

// The bytes are the copy's from now on: NaN until it is done.
void Begin(Block& block, const Copy& copy) {
  ForWords(block, copy.shared, copy.size, [](const Block::Word& word) {
    if (word.written) Misuse("a copy to bytes that another copy under way writes;");
    if (word.readers > 0) Misuse("a copy to bytes that a wgmma under way reads;");
  });
  ForWords(block, copy.shared, copy.size, [](Block::Word& word) { word.written = true; });
  Write(copy.shared, copy.size, copy.pc);
  FillBytes(copy.shared, 0xFF, copy.size);
}

void Move(const Copy& copy) {
  CopyBytes(copy.shared, copy.global, copy.bytes);
  FillBytes(copy.shared + copy.bytes, 0, copy.size - copy.bytes);
}

void EndCpAsync(Thread& thread, const Copy& copy) {
  Read(copy.global, copy.bytes, copy.pc);
  Write(copy.shared, copy.size, copy.pc);
  Move(copy);
  const Block::Word after{.writer = static_cast<uint16_t>(thread.idx + 1),
                          .number = ++thread.num_written};
  ForWords(BlockOf(thread), copy.shared, copy.size, [&](Block::Word& word) {
    word.written = false;
    word.writer = after.writer;
    word.number = after.number;
  });
}

MBarrierState& FindMBarrier(const uint64_t* barrier, const char* call) {
  Block& block = BlockOf(RunningThread());
  CheckShared(barrier, 8, 8, call);
  const uint64_t i = *barrier & 0xFFFFFFFFu;
  if (*barrier >> 32 != kMBarrierMark || i >= block.mbarriers.size() ||
      block.mbarriers[i].address != barrier) {
    Misuse(std::string(call) + ": the MBarrier is not initialised, or was overwritten;");
  }
  return block.mbarriers[i];
}

int NumberOf(const Block& block, const MBarrierState& barrier) {
  return static_cast<int>(&barrier - block.mbarriers.data());
}

// Ends the phase if nothing is missing; whoever waits for it is ready then.
void EndPhase(Block& block, MBarrierState& barrier) {
  if (barrier.missing != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.missing = barrier.count;
  for (int i = 0; i < block.num_warps; ++i) {
    if (barrier.waiting[i] != 0) MakeReady(block.warps[i], barrier.waiting[i]);
    barrier.waiting[i] = 0;
  }
}

void EndBulkCopy(Block& block, const Copy& copy) {
  Move(copy);
  ForWords(block, copy.shared, copy.size, [](Block::Word& word) { word = Block::Word{}; });
  MBarrierState& barrier = block.mbarriers[copy.barrier];
  barrier.bytes -= copy.bytes;
  EndPhase(block, barrier);
}

// Ends the bulk copies that `chosen` names.
template <typename Chosen>
bool EndBulkCopies(Block& block, Chosen chosen) {
  std::vector<Copy>& copies = block.bulk_copies;
  bool any = false;
  for (size_t i = 0; i < copies.size();) {
    if (!chosen(copies[i])) {
      ++i;
      continue;
    }
    const Copy copy = copies[i];
    copies[i] = copies.back();
    copies.pop_back();
    EndBulkCopy(block, copy);
    any = true;
  }
  return any;
}

bool HasWaiters(const MBarrierState& barrier) {
  for (const uint32_t lanes : barrier.waiting) {
    if (lanes != 0) return true;
  }
  return false;
}

}  // namespace

void LoadGlobal(void* to, const void* global, int bytes, Site at) {
  RunningThread().at = at;
  if (!Aligned(global, bytes)) {
    Misuse("a load of " + std::to_string(bytes) + " bytes from an address that is not aligned");
  }
  CheckGlobalRead(global, bytes);
  Read(global, bytes, __builtin_return_address(0));
  CopyBytes(to, global, bytes);
}

uint32_t SharedAddress(const void* shared, Site at) {
  RunningThread().at = at;
  return static_cast<uint32_t>(kFirstSharedAddress + CheckShared(shared, 0, 1, "SharedAddress"));
}

void CpAsync(void* shared, const void* global, int size, int bytes, Site at) {
  Thread& thread = RunningThread();
  thread.at = at;
  CheckShared(shared, size, size, "CpAsync");
  if (bytes < 0 || bytes > size) {
    Misuse("CpAsync of " + std::to_string(bytes) + " of " + std::to_string(size) + " bytes");
  }
  if (!Aligned(global, size)) Misuse("CpAsync from an address that is not aligned to its size");
  if (bytes > 0) CheckGlobalRead(global, bytes);
  const Copy copy{.shared = static_cast<unsigned char*>(shared),
                  .global = global,
                  .size = size,
                  .bytes = bytes,
                  .group = thread.group,
                  .pc = __builtin_return_address(0)};
  Begin(BlockOf(thread), copy);
  if (grid.OneIn(16)) return EndCpAsync(thread, copy);
  thread.copies.push_back(copy);
}

void CpAsyncCommit(Site at) {
  RunningThread().at = at;
  ++RunningThread().group;
}

void CpAsyncWait(int pending, Site at) {
  Thread& thread = RunningThread();
  thread.at = at;
  // Committed groups are those below thread.group.
  const int64_t waited = thread.group - pending;
  size_t kept = 0;
  for (const Copy& copy : thread.copies) {
    if (copy.group < waited || grid.OneIn(16)) {
      EndCpAsync(thread, copy);
    } else {
      thread.copies[kept++] = copy;
    }
  }
  thread.copies.resize(kept);
}

void EndCpAsyncOfThread(Thread& thread) {
  for (const Copy& copy : thread.copies) EndCpAsync(thread, copy);
  thread.copies.clear();
}

void MBarrierInit(uint64_t* barrier, int num_arrivals, Site at) {
  Thread& thread = RunningThread();
  Block& block = BlockOf(thread);
  thread.at = at;
  CheckShared(barrier, 8, 8, "MBarrierInit");
  if (num_arrivals < 1) Misuse("MBarrierInit for " + std::to_string(num_arrivals) + " arrivals");
  size_t i = 0;
  while (i < block.mbarriers.size() && block.mbarriers[i].address != barrier) ++i;
  if (i == kMostMBarriers) Misuse("more than " + std::to_string(i) + " MBarriers in a block");
  if (i == block.mbarriers.size()) {
    block.mbarriers.emplace_back();
  } else if (HasWaiters(block.mbarriers[i])) {
    Misuse("MBarrierInit of a barrier that threads wait at");
  }
  block.mbarriers[i] =
      MBarrierState{.address = barrier, .count = num_arrivals, .missing = num_arrivals};
  Write(barrier, 8, __builtin_return_address(0));
  *barrier = kMBarrierMark << 32 | i;
}

void FenceMBarrierInit() {
  for (MBarrierState& barrier : BlockOf(RunningThread()).mbarriers) barrier.fenced = true;
}

void MBarrierArrive(uint64_t* barrier, int bytes, Site at) {
  Thread& thread = RunningThread();
  Block& block = BlockOf(thread);
  thread.at = at;
  MBarrierState& state = FindMBarrier(barrier, "MBarrierArrive");
  Read(barrier, 8, __builtin_return_address(0));
  if (state.missing == 0) {
    Misuse("MBarrierArrive: more than the " + std::to_string(state.count) +
           " arrivals of a phase; it still waits for " + std::to_string(state.bytes) + " bytes;");
  }
  Release(block.MBarrierKey(NumberOf(block, state), state.phase));
  state.bytes += bytes;
  --state.missing;
  EndPhase(block, state);
}

void MBarrierWait(uint64_t* barrier, uint32_t parity, Site at) {
  Thread& thread = RunningThread();
  Block& block = BlockOf(thread);
  thread.at = at;
  MBarrierState& state = FindMBarrier(barrier, "MBarrierWait");
  Read(barrier, 8, __builtin_return_address(0));
  if (parity > 1) Misuse("MBarrierWait for a parity of " + std::to_string(parity));
  const int number = NumberOf(block, state);
  if (state.phase % 2 == parity && grid.OneIn(8)) {
    EndBulkCopies(block, [&](const Copy& copy) { return copy.barrier == number; });
  }
  const uint32_t phase = state.phase;
  if (phase % 2 == parity) {
    state.waiting[thread.warp->idx] |= 1u << thread.lane;
    Park("MBarrierWait");
    if (block.mbarriers[number].phase - phase > 1) {
      Misuse(
          "MBarrierWait: the barrier is two phases further than this thread saw; nothing makes "
          "it wait for this thread;");
    }
  }
  Acquire(block.MBarrierKey(number, parity));
}

void BulkCopy(void* shared, const void* global, int bytes, uint64_t* barrier, Site at) {
  Thread& thread = RunningThread();
  Block& block = BlockOf(thread);
  thread.at = at;
  MBarrierState& state = FindMBarrier(barrier, "BulkCopy");
  CheckShared(shared, bytes, 16, "BulkCopy");
  if (bytes <= 0 || bytes % 16 != 0 || !Aligned(global, 16)) {
    Misuse("BulkCopy of " + std::to_string(bytes) +
           " bytes: bytes and addresses are multiples of 16");
  }
  if (!state.fenced) Misuse("BulkCopy: no FenceMBarrierInit after MBarrierInit;");
  CheckGlobalRead(global, bytes);
  const Copy copy{.shared = static_cast<unsigned char*>(shared),
                  .global = global,
                  .size = bytes,
                  .bytes = bytes,
                  .barrier = NumberOf(block, state),
                  .pc = __builtin_return_address(0)};
  // The copy is ordered as if this thread made it now; who waits for the barrier sees it.
  Read(global, bytes, copy.pc);
  Begin(block, copy);
  Release(block.MBarrierKey(copy.barrier, state.phase));
  if (grid.OneIn(16)) return EndBulkCopy(block, copy);
  if (block.bulk_copies.size() == kMostBulkCopies) {
    Misuse("more than " + std::to_string(kMostBulkCopies) + " bulk copies under way");
  }
  block.bulk_copies.push_back(copy);
}

void FenceProxyAsync() {
  RunningThread().num_fenced = RunningThread().num_written;
  FenceMBarrierInit();
}

void StartAsync(Block& block) {
  for (int i = 0; i < block.block_dim; ++i) {
    Thread& thread = block.threads[i];
    thread.copies.clear();
    thread.group = 0;
    thread.num_written = 0;
    thread.num_fenced = 0;
  }
  for (int i = 0; i < kMostWarps; ++i) {
    Warp& warp = block.warps[i];
    if (warp.num_wgmmas > 0) std::fill_n(block.wgmma_calls[i / 4], kKnownWgmmas, WgmmaCall{});
    warp.num_pending = 0;
    warp.wgmma_group = 0;
    warp.num_wgmmas = 0;
    warp.wgmma_fenced = false;
    warp.registers = 0;
  }
  block.words.assign(block.smem_bytes / kWordBytes + 1, Block::Word{});
  block.mbarriers.clear();
  block.mbarriers.reserve(kMostMBarriers);
  block.bulk_copies.clear();
  block.bulk_copies.reserve(kMostBulkCopies);
}

bool ProgressAsync(Block& block) {
  return EndBulkCopies(block,
                       [&](const Copy& copy) { return HasWaiters(block.mbarriers[copy.barrier]); });
}

void EndAsyncOfThread(Thread& thread) {
  if (!thread.copies.empty()) {
    Misuse("the thread ends with " + std::to_string(thread.copies.size()) +
           " copies of CpAsync that it has not waited for;");
  }
  EndWgmmaOfThread(thread);
}

std::string EndAsyncOfBlock(const Block& block) {
  if (block.bulk_copies.empty()) return EndWgmmaOfBlock(block);
  return "the block ends with " + std::to_string(block.bulk_copies.size()) +
         " bulk copies that nobody has waited for";
}

std::string StalledAsyncText(const Block& block) {
  std::string text;
  for (const MBarrierState& barrier : block.mbarriers) {
    if (!HasWaiters(barrier)) continue;
    const int64_t offset = static_cast<const unsigned char*>(barrier.address) - block.smem;
    text += "\n  MBarrier at offset " + std::to_string(offset) + ", phase " +
            std::to_string(barrier.phase) + ": " + std::to_string(barrier.missing) + " of " +
            std::to_string(barrier.count) + " arrivals and " + std::to_string(barrier.bytes) +
            " bytes are missing";
  }
  return text;
}

}  // namespace jevons::emu
