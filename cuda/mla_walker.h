// Who computes which part of an attention step: the keys' split at fixed positions, and the walk of
// a fixed grid over the work of a step whose sizes only the device knows.
//
// A row of queries is one head of one token. A row tile is up to 32 rows that follow each other in
// a sequence, or, if wide (mla_wide.h), 64 of one token. An item is a row tile and a range of whole
// splits: a piece. Sequences are cut in more than one piece only where one of their row tiles is
// far more than a fair share; nothing in the results depends on where.
#pragma once

#include <cstdint>

#include "cuda/device/warp.h"
#include "cuda/mla.h"
#include "cuda/mla_splits.h"

namespace jevons::cuda {

constexpr int kMlaThreads = 256;  // that know sequences, merge and make values
constexpr int kMlaWideThreads = 384;
constexpr int kMlaGroupRows = 16;  // rows of one tensor-core tile
constexpr int kMlaMostRows = 32;
constexpr int kMlaWideRows = 64;
constexpr int kMlaWorkTokens = 64;  // the unit of work
constexpr int kMlaLeastPiece = 2;   // units: the smallest split
// A row tile of 16 rows is bound by memory, and with bf16 entries half of the blocks can draw all
// of it: such row tiles stay whole up to so many fair shares. FP8 entries are half the bytes and
// more work, for which all blocks are needed.
constexpr int kMlaMostShares = 2;
struct MlaItem {
  int32_t seq;
  int32_t first_token;     // of the sequence
  int32_t first_row;       // in the sequence: token * num_heads + head
  int32_t num_rows;        // 0: nothing to do
  int32_t first_position;  // of the sequence's first query
  int32_t first_split;
  int32_t first_key;
  int32_t end_key;  // first_key or less: no keys
  int32_t piece;
  int32_t num_pieces;
  int32_t second_split;         // where the second piece begins
  int32_t slot;                 // of the row tile's partial results; -1: not cut
  int32_t num_groups;           // slots of one partial result
  MlaSplits<true> wide_splits;  // if wide: all its rows have one position
};

// A token whose partial results nobody has added; slot -1: it has none.
struct MlaCutToken {
  int32_t slot = -1;  // of its sequence's first row tile
  int32_t first_row = 0;
  int32_t position = 0;
  int32_t rows_per_tile = 0;
  int32_t tile_slots = 0;  // from row tile to row tile
  int32_t second_split = 0;
};

// What a thread's own sequences have.
struct MlaOwnItems {
  int32_t first_item;
  int32_t end_item;
  int32_t first_slot;
};

// All that a walker knows: registers are short.
struct MlaWalkerShared {
  int64_t warp_sum[kMlaWideThreads / 32];
  MlaOwnItems own[kMlaThreads];
  int32_t share;
  int32_t num_items;
  int32_t pass;
  MlaItem item;
};

// What one sequence is to the walker.
struct MlaSequenceWork {
  int32_t first_token = 0;
  int32_t num_rows = 0;
  int32_t rows_per_tile = kMlaMostRows;
  int32_t most_shares = 1;  // that an item may have
  int32_t num_tiles = 0;    // row tiles
  int32_t context = 0;      // 0 where it cannot be: rows become NaN
  int32_t first_position = 0;
  int32_t num_units = 0;  // of the row tile with most keys
};

template <bool kWide>
__device__ __forceinline__ MlaSequenceWork MlaDescribe(const MlaAttentionParams& p, int seq) {
  MlaSequenceWork work;
  const int32_t begin = p.cu_seqlens_q[seq];
  const int32_t end = p.cu_seqlens_q[seq + 1];
  if (begin < 0 || end <= begin || end > p.num_tokens) return work;
  work.first_token = begin;
  work.num_rows = (end - begin) * p.num_heads;
  if constexpr (kWide) {
    work.rows_per_tile = kMlaWideRows;
  } else if (work.num_rows <= kMlaGroupRows) {
    work.rows_per_tile = kMlaGroupRows;
    if (p.entry == MlaEntry::kBf16) work.most_shares = kMlaMostShares;
  }
  work.num_tiles = (work.num_rows + work.rows_per_tile - 1) / work.rows_per_tile;
  const int32_t context = p.context_lens[seq];
  if (context < end - begin || context > kMlaMostContext) return work;
  if (context > static_cast<int64_t>(p.max_blocks) * p.block_size) return work;
  work.context = context;
  work.first_position = context - (end - begin);
  work.num_units = (context - 1) / kMlaWorkTokens + 1;
  return work;
}

// How a sequence is cut when a fair share is `share` units. Wide ones whose rows have splits of
// different lengths are not.
template <bool kWide>
struct MlaCut {
  MlaSplits<kWide> splits;
  int32_t num_pieces;
  int32_t num_splits;
  int32_t num_units;

  __device__ __forceinline__ MlaCut(const MlaSequenceWork& work, int share)
      : splits(work.context - 1),
        num_pieces(1),
        num_splits(work.context > 0 ? splits.Of(work.context - 1) + 1 : 0),
        num_units(work.num_units) {
    if constexpr (kWide) {
      if (splits.log2 != MlaSplits<kWide>(work.first_position).log2) num_splits = 1;
    }
    if (num_units > work.most_shares * share) num_pieces = min(num_units / share, num_splits);
  }
  // The first split of a piece: the first that begins at or after the piece's part of the keys.
  __device__ __forceinline__ int Begin(int piece) const {
    if (piece == 0) return 0;
    if (piece == num_pieces) return num_splits;
    const int64_t unit = static_cast<int64_t>(piece) * num_units / num_pieces;
    const int token = static_cast<int>(unit) * kMlaWorkTokens;
    const int split = splits.Of(token);
    return min(num_splits, splits.Begin(split) < token ? split + 1 : split);
  }
  // One partial result for the first piece and one for each later split.
  __device__ __forceinline__ int NumPartials() const {
    return num_pieces == 1 ? 0 : 1 + num_splits - Begin(1);
  }
};

// Gives each block its items. All threads of the block call each function together; each knows the
// work of a run of sequences.
template <bool kWide>
class MlaWalker {
 public:
  __device__ __forceinline__ MlaWalker(const MlaAttentionParams& p, MlaWalkerShared& shared)
      : p_(p), shared_(shared) {
    int64_t units = 0;
    for (int s = Begin(0); s < Begin(1); ++s) {
      const MlaSequenceWork work = MlaDescribe<kWide>(p, s);
      units += static_cast<int64_t>(work.num_tiles) * work.num_units;
    }
    int64_t total = 0;
    ScanBlock(units, total);
    const int64_t share = (total + device::GridDimX() - 1) / device::GridDimX();
    if (device::Opaque(device::ThreadIdx()) == 0) {
      shared_.share = static_cast<int32_t>(share < kMlaLeastPiece ? kMlaLeastPiece : share);
    }
    device::SyncThreads();

    // Items in the low half, slots in the high half.
    int64_t counts = 0;
    for (int s = Begin(0); s < Begin(1); ++s) {
      const MlaSequenceWork work = MlaDescribe<kWide>(p, s);
      counts += Slots(work) << 32 | static_cast<uint32_t>(Items(work));
    }
    const int64_t before = ScanBlock(counts, total);
    if (Knows()) {
      shared_.own[device::ThreadIdx()] = {static_cast<int32_t>(before),
                                          static_cast<int32_t>(before + counts),
                                          static_cast<int32_t>(before >> 32)};
    }
    if (device::Opaque(device::ThreadIdx()) == 0) {
      shared_.num_items = static_cast<int32_t>(total);
      shared_.pass = 0;
    }
    device::SyncThreads();
  }

  // Puts the block's next item into the shared memory, or false. The walk turns round after each
  // pass over the grid, which evens out work that grows with the item.
  __device__ __forceinline__ bool Next() {
    const int grid = device::GridDimX();
    const int block = device::BlockIdxX();
    const int pass = shared_.pass;
    const int64_t idx =
        static_cast<int64_t>(pass) * grid + (pass % 2 == 0 ? block : grid - 1 - block);
    if (idx >= shared_.num_items) return false;
    const int item = static_cast<int>(idx);
    device::SyncThreads();
    if (device::Opaque(device::ThreadIdx()) == 0) ++shared_.pass;
    if (Knows()) {
      const MlaOwnItems& own = shared_.own[device::ThreadIdx()];
      if (item >= own.first_item && item < own.end_item) Resolve(item, own);
    }
    device::SyncThreads();
    return true;
  }

  // Describes the tokens of all sequences that are cut, before the block's next barrier; the others
  // stay as they are.
  __device__ __forceinline__ void FindCutTokens(MlaCutToken* tokens) const {
    if (!Knows()) return;
    int64_t slot = shared_.own[device::ThreadIdx()].first_slot;
    for (int s = Begin(0); s < Begin(1); ++s) {
      const MlaSequenceWork work = MlaDescribe<kWide>(p_, s);
      const MlaCut<kWide> cut(work, shared_.share);
      if (IsStored(work, cut, slot)) {
        const int num_groups = work.rows_per_tile / kMlaGroupRows;
        for (int i = 0; i < work.num_rows / p_.num_heads; ++i) {
          tokens[work.first_token + i] = {static_cast<int32_t>(slot),     i * p_.num_heads,
                                          work.first_position + i,        work.rows_per_tile,
                                          cut.NumPartials() * num_groups, cut.Begin(1)};
        }
      }
      slot += Slots(work);
    }
  }

 private:
  // Whether this thread may have sequences.
  __device__ __forceinline__ static bool Knows() {
    return !kWide || device::Opaque(device::ThreadIdx()) < kMlaThreads;
  }
  // The first sequence of this thread, or of one `later`.
  __device__ __forceinline__ int Begin(int later) const {
    const int per_thread = (p_.num_seqs + kMlaThreads - 1) / kMlaThreads;
    return min(p_.num_seqs, (device::Opaque(device::ThreadIdx()) + later) * per_thread);
  }
  __device__ __forceinline__ int32_t Items(const MlaSequenceWork& work) const {
    return work.num_tiles * MlaCut<kWide>(work, shared_.share).num_pieces;
  }
  __device__ __forceinline__ int64_t Slots(const MlaSequenceWork& work) const {
    return static_cast<int64_t>(work.num_tiles) * MlaCut<kWide>(work, shared_.share).NumPartials() *
           (work.rows_per_tile / kMlaGroupRows);
  }

  // A sequence whose slots do not exist is not cut after all.
  __device__ __forceinline__ bool IsStored(const MlaSequenceWork& work, const MlaCut<kWide>& cut,
                                           int64_t slot) const {
    return cut.num_pieces > 1 && slot + Slots(work) <= p_.num_slots;
  }

  __device__ __forceinline__ void Resolve(int idx, const MlaOwnItems& own) {
    int before = own.first_item;
    int64_t slot = own.first_slot;
    for (int s = Begin(0); s < Begin(1); ++s) {
      const MlaSequenceWork work = MlaDescribe<kWide>(p_, s);
      const int items = Items(work);
      if (idx < before + items) {
        shared_.item = ItemOf(s, work, idx - before, slot);
        return;
      }
      before += items;
      slot += Slots(work);
    }
  }

  // Item `idx` of a sequence. Of one that is not cut after all the first pieces do everything.
  __device__ __forceinline__ MlaItem ItemOf(int seq, const MlaSequenceWork& work, int idx,
                                            int64_t slot) const {
    const MlaCut<kWide> cut(work, shared_.share);
    const bool stored = IsStored(work, cut, slot);
    const int tile = idx / cut.num_pieces;
    MlaItem item;
    item.seq = seq;
    item.first_token = work.first_token;
    item.first_row = tile * work.rows_per_tile;
    item.num_rows = min(work.rows_per_tile, work.num_rows - item.first_row);
    item.first_position = work.first_position;
    item.piece = idx % cut.num_pieces;
    item.num_pieces = cut.num_pieces;
    item.second_split = cut.Begin(min(1, cut.num_pieces));
    item.num_groups = work.rows_per_tile / kMlaGroupRows;
    item.slot =
        stored ? static_cast<int32_t>(slot) + tile * cut.NumPartials() * item.num_groups : -1;
    if (!stored && item.piece > 0) item.num_rows = 0;
    item.first_split = cut.Begin(item.piece);
    item.first_key = cut.splits.Begin(item.first_split);
    if constexpr (kWide) {
      item.wide_splits = MlaSplits<true>(work.first_position + item.first_row / p_.num_heads);
    }
    const int last_row = item.first_row + item.num_rows - 1;
    const int num_keys = work.context > 0 ? work.first_position + last_row / p_.num_heads + 1 : 0;
    item.end_key = num_keys;
    if (stored && item.piece + 1 < cut.num_pieces) {
      item.end_key = min(num_keys, cut.splits.Begin(cut.Begin(item.piece + 1)));
    }
    return item;
  }

  // The sum of the values of the threads before, and of all.
  __device__ __forceinline__ int64_t ScanBlock(int64_t value, int64_t& total) {
    const int lane = device::Opaque(device::LaneIdx());
    const int warp = device::Opaque(device::WarpIdx());
    int64_t upto = value;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
      const int64_t other = device::ShflUp(upto, delta);
      if (lane >= delta) upto += other;
    }
    if (lane == 31) shared_.warp_sum[warp] = upto;
    device::SyncThreads();
    int64_t before = upto - value;
    total = 0;
    for (int w = 0; w < kMlaThreads / 32; ++w) {
      if (w < warp) before += shared_.warp_sum[w];
      total += shared_.warp_sum[w];
    }
    device::SyncThreads();
    return before;
  }

  const MlaAttentionParams& p_;
  MlaWalkerShared& shared_;
};

}  // namespace jevons::cuda
