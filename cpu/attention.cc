#include "cpu/attention.h"

#include <algorithm>
#include <vector>

#include "cpu/attention_kernels.h"
#include "cpu/scratch.h"

namespace jevons::fast {
namespace {

// Partial results that exist at the same time, where a sequence's keys are split over threads.
constexpr int64_t kMaxPartialFloats = int64_t{4} << 20;
// With fewer tiles than this a thread, tiles are split by keys.
constexpr int64_t kTilesPerThread = 8;

// Neighbouring head groups of one sequence, counted query by query.
struct Item {
  int64_t seq;
  int64_t first_group;
  int64_t num_groups;
  int64_t num_chunks;
  int64_t first_task;  // where its chunks begin among all chunks
};

struct Task {
  int64_t item;
  int64_t chunk;
};

// One call. Its memory comes from the calling thread and outlives it there.
class Attention {
 public:
  explicit Attention(const MlaAttentionArgs& args)
      : args_(args),
        cu_(args.cu_seqlens_q.ptr<int32_t>()),
        num_heads_(args.q.dim(1)),
        groups_per_query_((num_heads_ + kGroupHeads - 1) / kGroupHeads),
        width_(args.q.dim(2)),
        r_(args.out.dim(2)),
        block_size_(args.cache.dim(1)) {}

  void Run(ThreadPool& pool);

 private:
  void AddItems(std::vector<Item>& items);
  void RunWhole(const std::vector<Item>& items, ThreadPool& pool) const;
  void RunSplit(const std::vector<Item>& items, ThreadPool& pool) const;
  int64_t FirstPosition(int64_t seq) const {
    return args_.context_lens.ptr<int32_t>()[seq] - (cu_[seq + 1] - cu_[seq]);
  }
  QueryTile MakeTile(const Item& item, const float* q) const;
  void PackQueries(const Item& item, float* q) const;
  void Attend(const Item& item, const QueryTile& tile, int64_t chunk, float* scores,
              float* partial) const;
  void MergeRows(const Item& item, int64_t row, int64_t wave, int64_t wave_end,
                 const float* partials, float* total) const;
  // Rows [row, row + kMergeRows) of an item's result.
  void WriteRows(const Item& item, int64_t row, const float* total) const;

  // Memory for any of the items.
  int64_t QueryFloats() const { return most_groups_ * kGroupHeads * width_; }
  int64_t TileFloats() const { return PartialFloats(most_groups_, r_); }
  // Scores and, behind them, the keys of a block that had to be decoded.
  int64_t TileScoreFloats() const {
    const int64_t decoded = args_.cache.dtype == DType::kU8 ? block_size_ * width_ : 0;
    return ScoreFloats(most_groups_, block_size_) + decoded;
  }

  const MlaAttentionArgs& args_;
  const int32_t* cu_;
  int64_t num_heads_;
  int64_t groups_per_query_;
  int64_t width_;
  int64_t r_;
  int64_t block_size_;
  int64_t most_groups_ = 0;  // of an item
};

void Attention::AddItems(std::vector<Item>& items) {
  items.clear();
  int64_t num_tasks = 0;
  for (int64_t seq = 0; seq < args_.context_lens.dim(0); ++seq) {
    const int64_t num_groups = (cu_[seq + 1] - cu_[seq]) * groups_per_query_;
    for (int64_t first = 0; first < num_groups; first += kTileGroups) {
      const int64_t count = std::min(kTileGroups, num_groups - first);
      const int64_t last_position = FirstPosition(seq) + (first + count - 1) / groups_per_query_;
      const int64_t num_chunks = last_position / (block_size_ * kMlaChunkBlocks) + 1;
      items.push_back({seq, first, count, num_chunks, num_tasks});
      num_tasks += num_chunks;
      most_groups_ = std::max(most_groups_, count);
    }
  }
}

QueryTile Attention::MakeTile(const Item& item, const float* q) const {
  QueryTile tile;
  tile.num_groups = item.num_groups;
  tile.q = q;
  tile.scale = args_.scale;
  for (int64_t g = 0; g < item.num_groups; ++g) {
    const int64_t group = item.first_group + g;
    tile.position[g] = FirstPosition(item.seq) + group / groups_per_query_;
    tile.num_heads[g] = std::min(kGroupHeads, num_heads_ - group % groups_per_query_ * kGroupHeads);
  }
  return tile;
}

void Attention::PackQueries(const Item& item, float* q) const {
  for (int64_t g = 0; g < item.num_groups; ++g) {
    const int64_t group = item.first_group + g;
    const int64_t first_head = group % groups_per_query_ * kGroupHeads;
    const int64_t heads = std::min(kGroupHeads, num_heads_ - first_head);
    const float* from = args_.q.row<float>(cu_[item.seq] + group / groups_per_query_) +
                        first_head * args_.q.stride[1];
    float* to = q + g * width_ * kGroupHeads;
    for (int64_t c = 0; c < width_; ++c) {
      for (int64_t h = 0; h < heads; ++h) to[c * kGroupHeads + h] = from[h * args_.q.stride[1] + c];
      for (int64_t h = heads; h < kGroupHeads; ++h) to[c * kGroupHeads + h] = 0;
    }
  }
}

void Attention::Attend(const Item& item, const QueryTile& tile, int64_t chunk, float* scores,
                       float* partial) const {
  const bool fp8 = args_.cache.dtype == DType::kU8;
  const KeyRun keys = {.cache = fp8 ? nullptr : args_.cache.ptr<float>(),
                       .fp8_cache = fp8 ? args_.cache.ptr<uint8_t>() : nullptr,
                       .decoded = fp8 ? scores + ScoreFloats(most_groups_, block_size_) : nullptr,
                       .block_table = args_.block_tables.row<int32_t>(item.seq),
                       .block_size = block_size_,
                       .width = width_,
                       .r = r_};
  AttendBlocks(tile, keys, chunk * kMlaChunkBlocks, (chunk + 1) * kMlaChunkBlocks, scores, partial);
}

void Attention::WriteRows(const Item& item, int64_t row, const float* total) const {
  const int64_t group = item.first_group + row / kGroupHeads;
  const int64_t first_head = group % groups_per_query_ * kGroupHeads + row % kGroupHeads;
  const int64_t last_head = std::min(first_head + kMergeRows, num_heads_);
  float* out = args_.out.row<float>(cu_[item.seq] + group / groups_per_query_);
  for (int64_t head = first_head; head < last_head; ++head, ++row) {
    WriteAttention(item.num_groups, r_, row, total, out + head * args_.out.stride[1]);
  }
}

void Attention::RunWhole(const std::vector<Item>& items, ThreadPool& pool) const {
  const int64_t num_items = static_cast<int64_t>(items.size());
  pool.ParallelFor(num_items, [&](int64_t task, int) {
    thread_local Scratch scratch;
    // From the back: later tiles of a prompt see more keys, and long tasks should start first.
    const Item& item = items[num_items - 1 - task];
    float* q = scratch.Get(QueryFloats() + 2 * TileFloats() + TileScoreFloats());
    float* total = q + QueryFloats();
    float* partial = total + TileFloats();
    float* scores = partial + TileFloats();
    PackQueries(item, q);
    const QueryTile tile = MakeTile(item, q);
    ClearPartial(item.num_groups, r_, total);
    for (int64_t chunk = 0; chunk < item.num_chunks; ++chunk) {
      Attend(item, tile, chunk, scores, partial);
      for (int64_t row = 0; row < item.num_groups * kGroupHeads; row += kMergeRows) {
        MergePartial(item.num_groups, r_, row, partial, total);
      }
    }
    for (int64_t row = 0; row < item.num_groups * kGroupHeads; row += kMergeRows) {
      WriteRows(item, row, total);
    }
  });
}

void Attention::RunSplit(const std::vector<Item>& items, ThreadPool& pool) const {
  thread_local std::vector<Task> tasks;
  thread_local Scratch shared;
  tasks.clear();
  for (size_t i = 0; i < items.size(); ++i) {
    for (int64_t chunk = 0; chunk < items[i].num_chunks; ++chunk) {
      tasks.push_back({static_cast<int64_t>(i), chunk});
    }
  }
  const int64_t num_items = static_cast<int64_t>(items.size());
  const int64_t num_tasks = static_cast<int64_t>(tasks.size());
  const int64_t slots = std::clamp(kMaxPartialFloats / TileFloats(), int64_t{1}, num_tasks);
  float* queries = shared.Get(num_items * (QueryFloats() + TileFloats()) + slots * TileFloats());
  float* totals = queries + num_items * QueryFloats();
  float* partials = totals + num_items * TileFloats();
  // Named here because a lambda on another thread would see that thread's own.
  const Task* task_list = tasks.data();

  pool.ParallelFor(num_items, [&](int64_t i, int) {
    PackQueries(items[i], queries + i * QueryFloats());
    ClearPartial(items[i].num_groups, r_, totals + i * TileFloats());
  });
  for (int64_t wave = 0; wave < num_tasks; wave += slots) {
    const int64_t wave_end = std::min(num_tasks, wave + slots);
    pool.ParallelFor(wave_end - wave, [&](int64_t slot, int) {
      thread_local Scratch scratch;
      const Task& task = task_list[wave + slot];
      const Item& item = items[task.item];
      Attend(item, MakeTile(item, queries + task.item * QueryFloats()), task.chunk,
             scratch.Get(TileScoreFloats()), partials + slot * TileFloats());
    });
    const int64_t runs_per_item = most_groups_ * kGroupHeads / kMergeRows;
    pool.ParallelFor(num_items * runs_per_item, [&](int64_t run, int) {
      const int64_t i = run / runs_per_item;
      MergeRows(items[i], run % runs_per_item * kMergeRows, wave, wave_end, partials,
                totals + i * TileFloats());
    });
  }
}

// Merges what the tasks [wave, wave_end) found for some rows of an item.
void Attention::MergeRows(const Item& item, int64_t row, int64_t wave, int64_t wave_end,
                          const float* partials, float* total) const {
  if (row >= item.num_groups * kGroupHeads) return;
  const int64_t item_end = item.first_task + item.num_chunks;
  const int64_t begin = std::max(wave, item.first_task);
  const int64_t end = std::min(wave_end, item_end);
  for (int64_t task = begin; task < end; ++task) {
    MergePartial(item.num_groups, r_, row, partials + (task - wave) * TileFloats(), total);
  }
  if (begin < end && end == item_end) WriteRows(item, row, total);
}

void Attention::Run(ThreadPool& pool) {
  thread_local std::vector<Item> items;
  AddItems(items);
  const int64_t num_items = static_cast<int64_t>(items.size());
  if (num_items == 0 || num_heads_ == 0) return;
  const bool enough = num_items >= kTilesPerThread * pool.num_threads();
  if (pool.num_threads() == 1 || enough) {
    RunWhole(items, pool);
  } else {
    RunSplit(items, pool);
  }
}

}  // namespace

void MlaAttention(const MlaAttentionArgs& args, ThreadPool& pool) { Attention(args).Run(pool); }

}  // namespace jevons::fast
