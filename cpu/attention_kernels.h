// The vector kernels of latent attention: one tile of query rows against one run of cache blocks.
#pragma once

#include <array>
#include <cstdint>

namespace jevons::fast {

// Heads of one query are handled in groups of this many; a smaller last group is padded.
inline constexpr int64_t kGroupHeads = 16;
// Head groups, of one query or of neighbours in the same sequence, that share what is loaded from
// the cache.
inline constexpr int64_t kTileGroups = 4;

// A run of a sequence's cache. Rows of one block lie `width` floats apart.
struct KeyRun {
  const float* cache = nullptr;          // or
  const uint8_t* fp8_cache = nullptr;    // Fp8Entry, which is read into `decoded` block by block
  float* decoded = nullptr;              // [block_size, width]; null without fp8_cache
  const int32_t* block_table = nullptr;  // of the sequence
  int64_t block_size = 0;
  int64_t width = 0;  // r + p, the floats that a score takes in
  int64_t r = 0;      // the floats that are summed
};

// Positions never fall from group to group: group g sees the keys [0, position[g]].
struct QueryTile {
  int64_t num_groups = 0;
  std::array<int64_t, kTileGroups> position = {};
  std::array<int64_t, kTileGroups> num_heads = {};  // without the padding
  const float* q = nullptr;                         // [num_groups, width, kGroupHeads]
  float scale = 0;
};

// State of a softmax over part of the keys: largest score and sum of weights [num_groups,
// kGroupHeads] each, then the weighted sum of latents [num_groups, kGroupHeads, r].
inline int64_t PartialFloats(int64_t num_groups, int64_t r) {
  return num_groups * kGroupHeads * (r + 2);
}
inline int64_t ScoreFloats(int64_t num_groups, int64_t block_size) {
  return num_groups * kGroupHeads * block_size;
}

// What    partial = state over the keys of blocks [block_begin, block_end) that each group may see
// Order   scores: c = 0 .. width - 1 in one chain; weighted sums: tokens in order; block after
// block Edge    keys past a group's position are not read into its sums `scores` is scratch of
// ScoreFloats.
void AttendBlocks(const QueryTile& tile, const KeyRun& keys, int64_t block_begin, int64_t block_end,
                  float* scores, float* partial);

// The state over no keys.
void ClearPartial(int64_t num_groups, int64_t r, float* partial);

// Rows of a partial result, one for each head of each group, are merged and written in runs of this
// many, so that threads can share them.
inline constexpr int64_t kMergeRows = 4;

// total = state over the keys of both, `next` later ones, for the rows [row, row + kMergeRows)
void MergePartial(int64_t num_groups, int64_t r, int64_t row, const float* next, float* total);

// out = weighted sum / sum of weights of one row
void WriteAttention(int64_t num_groups, int64_t r, int64_t row, const float* total, float* out);

}  // namespace jevons::fast
