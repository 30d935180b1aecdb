// Where a falling order of logits is to be cut, found without sorting: one block, one row.
//
// The order is that of a 50-bit rank: the logit as an ordered number, then the id, lower first. A
// histogram of the row gives the bin that holds the cut; a bin with few ids is sorted out in shared
// memory, one with many is divided again by the next ten bits of the rank. The first histogram has
// bins of equal distance to the largest logit, as equal bits would put most of a row in one bin.
// Masses are whole numbers, so that no order of adding shows.
#pragma once

#include <cstdint>

#include "base/float_order.h"
#include "cuda/device/numeric.h"
#include "cuda/device/thread.h"
#include "cuda/device/warp.h"

namespace jevons::cuda {

// More threads would have too few registers for the loads that must be under way.
constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kDigitBits = 10;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsPerThread = kBins / kSampleThreads;
static_assert(kBins % kSampleThreads == 0);
constexpr int kIdBits = 18;
constexpr int kRankBits = 32 + kIdBits;
static_assert(kRankBits % kDigitBits == 0);
// The first histogram: bins a unit of log-probability. The last bin holds what lies further away.
constexpr float kBinsPerUnit = 32;
// Fours of logits that a thread has asked for before it works on the first: 48 KB a block.
constexpr int kLoadsAhead = 6;
// Ids that are compared each with each.
constexpr int kMaxCandidates = 256;
// The largest weight, 1, as a whole number: 2^18 of them stay exact in a double.
constexpr float kMassOne = 0x1p34f;
constexpr float kLog2E = 1.44269504f;

struct Candidate {
  uint64_t rank;
  uint64_t mass;
};

// A bin and what comes before it.
struct Cut {
  int32_t bin;
  int32_t num_in;
  int32_t num_before;
  uint64_t mass_before;
};

struct SelectShared {
  uint32_t count[kBins];
  uint32_t mass_low[kBins];
  uint32_t mass_high[kBins];
  uint64_t warp_mass[kSampleWarps];
  int32_t warp_count[kSampleWarps];
  uint64_t warp_value[kSampleWarps];
  float warp_float[kSampleWarps];
  Candidate candidates[kMaxCandidates];
  int32_t num_candidates;
  Cut cut;
  uint64_t last_rank;
  uint64_t mass_kept;
};

// A row as the block reads it: four neighbouring logits at a time, in an order that the row's length
// alone decides; what the mask forbids is -inf.
struct LogitRow {
  const float* logits;
  const uint32_t* mask;  // null: all are allowed
  int32_t num_valid;
  bool whole;

  // fn(first_id, x): x are the logits of the ids first_id .. first_id + 3, -inf past the end.
  template <typename Fn>
  __device__ __forceinline__ void ForEachFour(const Fn& fn) const {
    const int32_t step = 4 * device::BlockDim();
    int32_t id = 4 * device::ThreadIdx();
    float4 ahead[kLoadsAhead];
#pragma unroll
    for (int i = 0; i < kLoadsAhead; ++i) ahead[i] = Load(id + i * step);
    for (; id < num_valid; id += step) {
      float x[4] = {ahead[0].x, ahead[0].y, ahead[0].z, ahead[0].w};
#pragma unroll
      for (int i = 0; i + 1 < kLoadsAhead; ++i) ahead[i] = ahead[i + 1];
      ahead[kLoadsAhead - 1] = Load(id + kLoadsAhead * step);
      if (mask != nullptr) {
        const uint32_t bits = mask[id / 32] >> id % 32;
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = (bits >> i & 1) != 0 ? x[i] : -INFINITY;
      }
      fn(id, x);
    }
  }
  __device__ __forceinline__ float4 Load(int32_t id) const {
    if (whole && id + 4 <= num_valid) return *reinterpret_cast<const float4*>(logits + id);
    return make_float4(LoadOne(id), LoadOne(id + 1), LoadOne(id + 2), LoadOne(id + 3));
  }
  __device__ __forceinline__ float LoadOne(int32_t id) const {
    return id < num_valid ? logits[id] : -INFINITY;
  }
  // fn(id, x) for each id that may be drawn at all.
  template <typename Fn>
  __device__ __forceinline__ void ForEachFinite(const Fn& fn) const {
    ForEachFour([&](int32_t id, const float(&x)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (x[i] > -INFINITY) fn(id + i, x[i]);
      }
    });
  }
};

__device__ __forceinline__ uint64_t RankOf(float logit, int32_t id) {
  return static_cast<uint64_t>(FloatOrderKey(logit)) << kIdBits |
         static_cast<uint64_t>((1 << kIdBits) - 1 - id);
}
__device__ __forceinline__ float LogitOf(uint64_t rank) {
  return FloatFromOrderKey(static_cast<uint32_t>(rank >> kIdBits));
}
__device__ __forceinline__ int32_t IdOf(uint64_t rank) {
  return (1 << kIdBits) - 1 - static_cast<int32_t>(rank & ((1 << kIdBits) - 1));
}

// How weights follow from logits: exp(-distance) with distance in units of log-probability.
struct Scale {
  float largest;
  float inv_temperature;

  __device__ __forceinline__ float Distance(float logit) const {
    return (largest - logit) * inv_temperature;
  }
};
__device__ __forceinline__ float Weight(float distance) { return device::Exp2(-distance * kLog2E); }
__device__ __forceinline__ uint64_t Mass(float distance) {
  return static_cast<uint64_t>(Weight(distance) * kMassOne);
}

// The largest of the block's values. Ends with a barrier, so that it may be called again.
__device__ __forceinline__ uint64_t BlockMax(uint64_t value, SelectShared& shared) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint64_t other = device::ShflXor(value, distance);
    value = other > value ? other : value;
  }
  if (device::LaneIdx() == 0) shared.warp_value[device::WarpIdx()] = value;
  device::SyncThreads();
  for (int w = 0; w < kSampleWarps; ++w) {
    value = shared.warp_value[w] > value ? shared.warp_value[w] : value;
  }
  device::SyncThreads();
  return value;
}
// The sum, lanes by halving distance, then warps in order.
__device__ __forceinline__ float BlockSum(float value, SelectShared& shared) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += device::ShflXor(value, distance);
  if (device::LaneIdx() == 0) shared.warp_float[device::WarpIdx()] = value;
  device::SyncThreads();
  float sum = 0;
  for (int w = 0; w < kSampleWarps; ++w) sum += shared.warp_float[w];
  device::SyncThreads();
  return sum;
}

// Which ids a histogram counts, and where. Bins go from the largest rank down.
struct Division {
  Scale scale;
  int32_t first_bin = -1;  // -1: the whole row, else a bin of the first histogram
  int32_t bits_left = kRankBits;
  uint64_t prefix = 0;  // the rank's bits above bits_left

  static __device__ __forceinline__ int32_t BinOfDistance(float distance) {
    constexpr float kRange = (kBins - 1) / kBinsPerUnit;
    return distance < kRange ? static_cast<int32_t>(distance * kBinsPerUnit) : kBins - 1;
  }
  // Whether the id lies in what is divided; then also its bin and its distance.
  __device__ __forceinline__ bool Find(float logit, int32_t id, int32_t& bin,
                                       float& distance) const {
    distance = scale.Distance(logit);
    bin = BinOfDistance(distance);
    if (first_bin < 0) return true;
    const uint64_t rank = RankOf(logit, id);
    if (bin != first_bin || rank >> bits_left != prefix) return false;
    bin = kBins - 1 - static_cast<int32_t>(rank >> (bits_left - kDigitBits) & (kBins - 1));
    return true;
  }
  // What remains to be divided is this bin.
  __device__ __forceinline__ void Enter(int32_t bin) {
    if (first_bin < 0) {
      first_bin = bin;
      return;
    }
    prefix = prefix << kDigitBits | static_cast<uint64_t>(kBins - 1 - bin);
    bits_left -= kDigitBits;
  }
};

// Fills the histogram. Ends with a barrier.
__device__ __forceinline__ void CountBins(const LogitRow& row, const Division& division,
                                          SelectShared& shared) {
  for (int bin = device::ThreadIdx(); bin < kBins; bin += kSampleThreads) {
    shared.count[bin] = 0;
    shared.mass_low[bin] = 0;
    shared.mass_high[bin] = 0;
  }
  device::SyncThreads();
  uint32_t num_last = 0;
  row.ForEachFinite([&](int32_t id, float logit) {
    int32_t bin;
    float distance;
    if (!division.Find(logit, id, bin, distance)) return;
    // The last bin may hold almost all ids, which would queue for it one by one.
    if (bin == kBins - 1) {
      ++num_last;
    } else {
      device::AtomicAdd(&shared.count[bin], 1u);
    }
    const uint64_t mass = Mass(distance);
    if (mass == 0) return;
    const uint32_t low = static_cast<uint32_t>(mass);
    const uint32_t before = device::AtomicAdd(&shared.mass_low[bin], low);
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < low);
    if (high != 0) device::AtomicAdd(&shared.mass_high[bin], high);
  });
  if (num_last != 0) device::AtomicAdd(&shared.count[kBins - 1], num_last);
  device::SyncThreads();
}

__device__ __forceinline__ uint64_t MassOfBin(const SelectShared& shared, int bin) {
  return static_cast<uint64_t>(shared.mass_high[bin]) << 32 | shared.mass_low[bin];
}

// Finds the bin in which `reached(count, mass)` turns true, both summed from the largest rank down;
// without one the cut has num_in 0 and the sums of all. Ends with a barrier.
template <typename Reached>
__device__ __forceinline__ Cut FindBin(const Cut& before, const Reached& reached,
                                       SelectShared& shared) {
  const int first_bin = device::ThreadIdx() * kBinsPerThread;
  int32_t own_count = 0;
  uint64_t own_mass = 0;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    own_count += static_cast<int32_t>(shared.count[first_bin + i]);
    own_mass += MassOfBin(shared, first_bin + i);
  }
  int32_t count = own_count;
  uint64_t mass = own_mass;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int32_t lower_count = device::ShflUp(count, distance);
    const uint64_t lower_mass = device::ShflUp(mass, distance);
    if (device::LaneIdx() < distance) continue;
    count += lower_count;
    mass += lower_mass;
  }
  if (device::LaneIdx() == 31) {
    shared.warp_count[device::WarpIdx()] = count;
    shared.warp_mass[device::WarpIdx()] = mass;
  }
  device::SyncThreads();
  count += before.num_before - own_count;
  mass += before.mass_before - own_mass;
  for (int w = 0; w < device::WarpIdx(); ++w) {
    count += shared.warp_count[w];
    mass += shared.warp_mass[w];
  }
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    const int bin = first_bin + i;
    const int32_t num_in = static_cast<int32_t>(shared.count[bin]);
    const uint64_t mass_in = MassOfBin(shared, bin);
    const bool here = reached(count + num_in, mass + mass_in);
    if (here && !reached(count, mass)) shared.cut = {bin, num_in, count, mass};
    count += num_in;
    mass += mass_in;
    if (bin == kBins - 1 && !here) shared.cut = {bin, 0, count, mass};
  }
  device::SyncThreads();
  return shared.cut;
}

// Collects the ids of the division's bin, at most kMaxCandidates. Ends with a barrier.
template <typename Inside>
__device__ __forceinline__ void Collect(const LogitRow& row, const Scale& scale,
                                        const Inside& inside, SelectShared& shared) {
  if (device::ThreadIdx() == 0) shared.num_candidates = 0;
  device::SyncThreads();
  row.ForEachFinite([&](int32_t id, float logit) {
    if (!inside(logit, id)) return;
    const int32_t slot = device::AtomicAdd(&shared.num_candidates, 1);
    if (slot < kMaxCandidates) {
      shared.candidates[slot] = {RankOf(logit, id), Mass(scale.Distance(logit))};
    }
  });
  device::SyncThreads();
}

// How many candidates come before candidate i, and their mass.
__device__ __forceinline__ void SumBefore(const SelectShared& shared, int i, int32_t& count,
                                          uint64_t& mass) {
  const uint64_t rank = shared.candidates[i].rank;
  for (int j = 0; j < shared.num_candidates; ++j) {
    if (shared.candidates[j].rank <= rank) continue;
    ++count;
    mass += shared.candidates[j].mass;
  }
}

// The ids with a rank of at least last_rank are kept; their mass.
struct Kept {
  uint64_t last_rank = 0;
  uint64_t mass = 0;
  bool counted = false;  // the histogram of the whole row stands
};

// The shortest beginning of the row's falling order with reached(count, mass), which must not turn
// false again; all finite ids where there is none. `counted`: the histogram of the whole row with
// this scale stands already. Ends with a barrier.
template <typename Reached>
__device__ __forceinline__ Kept SelectBeginning(const LogitRow& row, const Scale& scale,
                                                const Reached& reached, bool counted,
                                                SelectShared& shared) {
  Division division = {scale};
  Cut cut = {};
  do {
    if (!counted) CountBins(row, division, shared);
    counted = false;
    cut = FindBin(cut, reached, shared);
    if (cut.num_in == 0) return {0, cut.mass_before, true};
    division.Enter(cut.bin);
  } while (cut.num_in > kMaxCandidates);
  Collect(
      row, scale,
      [&](float logit, int32_t id) {
        return Division::BinOfDistance(scale.Distance(logit)) == division.first_bin &&
               RankOf(logit, id) >> division.bits_left == division.prefix;
      },
      shared);
  const int i = device::ThreadIdx();
  if (i < shared.num_candidates) {
    int32_t count = cut.num_before;
    uint64_t mass = cut.mass_before;
    SumBefore(shared, i, count, mass);
    const uint64_t with_own = mass + shared.candidates[i].mass;
    if (reached(count + 1, with_own) && !reached(count, mass)) {
      shared.last_rank = shared.candidates[i].rank;
      shared.mass_kept = with_own;
    }
  }
  device::SyncThreads();
  return {shared.last_rank, shared.mass_kept, division.bits_left == kRankBits};
}

}  // namespace jevons::cuda
