// SampleTokens: penalties, bias, mask, temperature, filters, the draw, log-probabilities. Formulas
// in ops/sample.h.
//
// A block has a row and reads it several times, from L2 where it fits: once for the largest logit
// and the softmax's sum; once more if lists or a mask changed it; two passes for each cut (top
// choices to report, top_k, top_p; see sample_select.h); once to draw. Greedy decoding is one pass:
// a row of 129,280 is 517 KB, some 4 us at what one multiprocessor takes from L2; 256 rows together
// are 132 MB, 44 us at 3 TB/s.
//
// A draw is the largest sum of a kept id's scaled logit and its own random number, so it needs
// neither an order nor a running sum; a random number is made only for ids that are kept.
//
// Barriers: within the reductions and selections, each of which ends with one; between the two lists
// that change logits, before changed logits are read, and before they are put back.
#include "cuda/sample.h"

#include <cmath>

#include "cuda/device/launch.h"
#include "cuda/sample_select.h"

namespace jevons::cuda {
namespace {

constexpr int32_t kMaxVocab = 1 << kIdBits;
constexpr int32_t kMaxTop = 128;
static_assert(kMaxTop <= kMaxCandidates);
constexpr float kNan = __builtin_nanf("");
// An id's rank where a logit is NaN: above all others.
constexpr uint64_t kNanRank = ~uint64_t{0};

struct KernelArgs {
  SampleTokensParams p;
  bool whole;
};

// What the plain softmax of a row needs.
struct RowStats {
  uint64_t best;  // rank of the largest; kNanRank where any is NaN
  float total;    // of exp(logit - largest)

  // Whether some logit is NaN or infinite above, or all are infinite below.
  __device__ __forceinline__ bool Lost() const {
    return best == kNanRank || !(LogitOf(best) < INFINITY) || !(LogitOf(best) > -INFINITY);
  }
  __device__ __forceinline__ float Logprob(float logit) const {
    return logit - LogitOf(best) - logf(total);
  }
};

__device__ __forceinline__ uint64_t LargerRank(uint64_t best, float logit, int32_t id) {
  const uint64_t rank = logit == logit ? RankOf(logit, id) : kNanRank;
  return rank > best ? rank : best;
}

__device__ __forceinline__ RowStats ComputeStats(const LogitRow& row, SelectShared& shared) {
  uint64_t best = 0;
  float largest = -INFINITY;
  float total = 0;
  row.ForEachFour([&](int32_t id, const float(&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (id + i < row.num_valid) best = LargerRank(best, x[i], id + i);
    }
    const float here = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    if (here > largest) {
      total *= device::Exp2((largest - here) * kLog2E);
      largest = here;
    }
    if (largest == -INFINITY) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) total += device::Exp2((x[i] - largest) * kLog2E);
  });
  best = BlockMax(best, shared);
  const float of_all = LogitOf(best);
  const float part = largest == -INFINITY ? 0 : total * device::Exp2((largest - of_all) * kLog2E);
  return {best, BlockSum(part, shared)};
}

__device__ __forceinline__ uint64_t FindBest(const LogitRow& row, SelectShared& shared) {
  uint64_t best = 0;
  row.ForEachFour([&](int32_t id, const float(&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (id + i < row.num_valid) best = LargerRank(best, x[i], id + i);
    }
  });
  return BlockMax(best, shared);
}

template <typename Value>
__device__ __forceinline__ bool HasEntries(const SampleEntries<Value>& list, int64_t r) {
  return list.cu != nullptr && list.cu[r] < list.cu[r + 1];
}

// fn(entry, id) for the entries of row r with a valid id.
template <typename Value, typename Fn>
__device__ __forceinline__ void ForEachEntry(const SampleEntries<Value>& list, int64_t r,
                                             int32_t num_valid, const Fn& fn) {
  if (list.cu == nullptr) return;
  const int32_t begin = list.cu[r] > 0 ? list.cu[r] : 0;
  const int32_t end = list.cu[r + 1] < list.num_entries ? list.cu[r + 1] : list.num_entries;
  for (int32_t i = begin + device::ThreadIdx(); i < end; i += device::BlockDim()) {
    const int32_t id = list.ids[i];
    if (id >= 0 && id < num_valid) fn(i, id);
  }
}

// Ends with a barrier.
__device__ __forceinline__ void ChangeLogits(const SampleTokensParams& p, int64_t r,
                                             float* logits) {
  const SampleRow& row = p.rows[r];
  ForEachEntry(p.counts, r, p.num_valid, [&](int32_t i, int32_t id) {
    p.counts.before[i] = logits[id];
    logits[id] = PenalizedLogit(logits[id], row, p.counts.values[i]);
  });
  device::SyncThreads();
  ForEachEntry(p.bias, r, p.num_valid, [&](int32_t i, int32_t id) {
    p.bias.before[i] = logits[id];
    logits[id] += p.bias.values[i];
  });
  device::SyncThreads();
}

// The other way round, after a barrier behind the last use. Ends with a barrier.
__device__ __forceinline__ void RestoreLogits(const SampleTokensParams& p, int64_t r,
                                              float* logits) {
  ForEachEntry(p.bias, r, p.num_valid,
               [&](int32_t i, int32_t id) { logits[id] = p.bias.before[i]; });
  device::SyncThreads();
  ForEachEntry(p.counts, r, p.num_valid,
               [&](int32_t i, int32_t id) { logits[id] = p.counts.before[i]; });
  device::SyncThreads();
}

// The rank from which on ids are kept by top_k and top_p.
__device__ __forceinline__ uint64_t LastKeptRank(const LogitRow& logits, const Scale& scale,
                                                 const SampleRow& row, SelectShared& shared) {
  const bool by_count = row.top_k > 0;
  const bool by_mass = row.top_p < 1;
  if (!by_count && !by_mass) return 0;
  const int32_t most = by_count ? row.top_k : INT32_MAX;
  const Kept kept = SelectBeginning(
      logits, scale, [=](int32_t count, uint64_t) { return count >= most; }, false, shared);
  if (!by_mass) return kept.last_rank;
  const double enough = static_cast<double>(row.top_p) * static_cast<double>(kept.mass);
  const Kept with_mass = SelectBeginning(
      logits, scale, [=](int32_t, uint64_t mass) { return static_cast<double>(mass) >= enough; },
      kept.counted, shared);
  return with_mass.last_rank > kept.last_rank ? with_mass.last_rank : kept.last_rank;
}

// The sums of the draw in the order of floats, then the lower id.
__device__ __forceinline__ uint64_t DrawRank(const SampleRow& row, uint32_t word, float distance,
                                             int32_t id) {
  uint32_t fine = 0;
  if (word < kFineBelow) fine = FineWord(row.seed, row.token_idx, id);
  return RankOf(-distance - Log(Exponential<float>(word, fine)), id);
}

__device__ __forceinline__ int32_t Draw(const LogitRow& logits, const SampleRow& row, float largest,
                                        SelectShared& shared) {
  constexpr float kLargestScale = 3e38f;
  const Scale scale = {largest, fminf(1.0f / row.temperature, kLargestScale)};
  const uint64_t last_rank = LastKeptRank(logits, scale, row, shared);
  uint64_t best = 0;
  logits.ForEachFour([&](int32_t id, const float(&x)[4]) {
    bool kept[4];
    float distance[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      distance[i] = scale.Distance(x[i]);
      kept[i] =
          x[i] > -INFINITY && RankOf(x[i], id + i) >= last_rank && Weight(distance[i]) >= row.min_p;
    }
    if (!(kept[0] || kept[1] || kept[2] || kept[3])) return;
    const RandomWords words = DrawWords(row.seed, row.token_idx, id / 4, false);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!kept[i]) continue;
      const uint64_t rank = DrawRank(row, words.word[i], distance[i], id + i);
      best = rank > best ? rank : best;
    }
  });
  return IdOf(BlockMax(best, shared));
}

__device__ __forceinline__ void ReportTop(const SampleTokensParams& p, int64_t r,
                                          const LogitRow& logits, const RowStats& stats,
                                          SelectShared& shared) {
  const int32_t wanted = p.rows[r].num_top < p.max_top ? p.rows[r].num_top : p.max_top;
  const Scale scale = {LogitOf(stats.best), 1};
  const Kept kept = SelectBeginning(
      logits, scale, [=](int32_t count, uint64_t) { return count >= wanted; }, false, shared);
  Collect(
      logits, scale, [&](float x, int32_t id) { return RankOf(x, id) >= kept.last_rank; }, shared);
  const int i = device::ThreadIdx();
  if (i >= shared.num_candidates && i < wanted) {
    p.top_ids[r * p.max_top + i] = -1;
    p.top_logprobs[r * p.max_top + i] = kNan;
  } else if (i < shared.num_candidates) {
    int32_t place = 0;
    uint64_t mass = 0;
    SumBefore(shared, i, place, mass);
    const uint64_t rank = shared.candidates[i].rank;
    p.top_ids[r * p.max_top + place] = IdOf(rank);
    p.top_logprobs[r * p.max_top + place] = stats.Logprob(LogitOf(rank));
  }
  device::SyncThreads();
}

// The token of a row that is not lost, or -1.
__device__ __forceinline__ int32_t PickToken(const SampleTokensParams& p, int64_t r,
                                             const LogitRow& plain, const RowStats& stats,
                                             SelectShared& shared) {
  const SampleRow& row = p.rows[r];
  if (row.mode == SampleMode::kScore) {
    return row.score_id >= 0 && row.score_id < p.num_valid ? row.score_id : -1;
  }
  float* logits = p.logits + r * p.logits_stride;
  LogitRow changed = plain;
  if (p.masks != nullptr && row.mask_row >= 0 && row.mask_row < p.num_masks) {
    changed.mask = p.masks + row.mask_row * p.mask_words;
  }
  const bool has_lists = HasEntries(p.bias, r) || HasEntries(p.counts, r);
  uint64_t best = stats.best;
  if (has_lists) ChangeLogits(p, r, logits);
  if (has_lists || changed.mask != nullptr) best = FindBest(changed, shared);
  int32_t token = -1;
  if (!RowStats{best, 0}.Lost()) {
    token = row.temperature > 0 ? Draw(changed, row, LogitOf(best), shared) : IdOf(best);
  }
  if (has_lists) RestoreLogits(p, r, logits);
  return token;
}

__global__ void __launch_bounds__(kSampleThreads)
    SampleTokensKernel(const __grid_constant__ KernelArgs args) {
  device::FollowKernelBefore();
  const SampleTokensParams& p = args.p;
  const int64_t r = device::BlockIdxX();
  const SampleRow& row = p.rows[r];
  if (row.mode == SampleMode::kSkip) return;
  SelectShared& shared = device::SharedMemory<SelectShared>();
  const LogitRow plain = {p.logits + r * p.logits_stride, nullptr, p.num_valid, args.whole};
  const RowStats stats = ComputeStats(plain, shared);
  const int32_t token = stats.Lost() ? -1 : PickToken(p, r, plain, stats, shared);
  if (device::ThreadIdx() == 0) {
    p.token[r] = token;
    p.logprob[r] = token < 0 ? kNan : stats.Logprob(plain.logits[token]);
  }
  if (token >= 0 && row.num_top > 0 && p.max_top > 0) ReportTop(p, r, plain, stats, shared);
}

}  // namespace

SamplePlan ChooseSampleTokens(const SampleTokensParams& p) {
  SamplePlan plan;
  plan.threads = kSampleThreads;
  plan.blocks = p.num_rows;
  plan.smem_bytes = sizeof(SelectShared);
  plan.whole = reinterpret_cast<uintptr_t>(p.logits) % 16 == 0 && p.logits_stride % 4 == 0;
  return plan;
}

cudaError_t LaunchSampleTokens(const SampleTokensParams& p, const DeviceFacts& device,
                               cudaStream_t stream) {
  if (p.num_valid < 1 || p.num_valid > kMaxVocab || p.max_top < 0 || p.max_top > kMaxTop) {
    return cudaErrorInvalidValue;
  }
  const SamplePlan plan = ChooseSampleTokens(p);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.blocks));
  shape.block = plan.threads;
  shape.early = device.early;
  shape.smem_bytes = plan.smem_bytes;
  return Launch(&SampleTokensKernel, shape, stream, KernelArgs{p, plan.whole});
}

}  // namespace jevons::cuda
