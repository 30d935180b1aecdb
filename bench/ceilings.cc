#include "bench/ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#include "cpu/huge_buffer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/ceilings.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/unroll.h"

HWY_BEFORE_NAMESPACE();
namespace jevons::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The sum of a chunk's words, read in `streams` places at once.
uint64_t SumWords(const uint8_t* data, int64_t bytes, int64_t streams) {
  const hn::ScalableTag<uint64_t> d;
  constexpr int64_t kStep = 256;
  constexpr int kVectors = kStep / HWY_MAX_BYTES;
  constexpr int64_t kAhead = 4096;
  hn::Vec<decltype(d)> sum[kVectors];
  JEVONS_UNROLL
  for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(d);
  const int64_t stream_bytes = bytes / streams;
  for (int64_t i = 0; i < stream_bytes; i += kStep) {
    for (int64_t s = 0; s < streams; ++s) {
      const uint8_t* p = data + s * stream_bytes + i;
      for (int64_t line = 0; line < kStep; line += 64) {
        __builtin_prefetch(p + kAhead + line, 0, 3);
      }
      JEVONS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const auto* words = reinterpret_cast<const uint64_t*>(p + v * HWY_MAX_BYTES);
        sum[v] = hn::Add(sum[v], hn::Load(d, words));
      }
    }
  }
  JEVONS_UNROLL
  for (int v = 1; v < kVectors; ++v) sum[0] = hn::Add(sum[0], sum[v]);
  return hn::GetLane(hn::SumOfLanes(d, sum[0]));
}

// Chains enough to hide the latency, few enough for the registers.
constexpr int kChains = HWY_TARGET <= HWY_AVX3 ? 24 : 12;

// Returns the number of flops.
int64_t MultiplyAdd(int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  hn::Vec<decltype(d)> sum[kChains];
  JEVONS_UNROLL
  for (int c = 0; c < kChains; ++c) sum[c] = hn::Set(d, static_cast<float>(c));
  const auto factor = hn::Set(d, *sink);
  for (int64_t i = 0; i < rounds; ++i) {
    JEVONS_UNROLL
    for (int c = 0; c < kChains; ++c) sum[c] = hn::MulAdd(sum[c], factor, factor);
  }
  JEVONS_UNROLL
  for (int c = 1; c < kChains; ++c) sum[0] = hn::Add(sum[0], sum[c]);
  *sink = hn::GetLane(sum[0]);
  return rounds * kChains * static_cast<int64_t>(hn::Lanes(d)) * 2;
}

}  // namespace jevons::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace jevons {
namespace {

HWY_EXPORT(SumWords);
HWY_EXPORT(MultiplyAdd);

using Clock = std::chrono::steady_clock;

constexpr int64_t kReadBytes = int64_t{1} << 30;
constexpr int64_t kChunkBytes = 512 << 10;
constexpr int kPasses = 15;
constexpr int64_t kRounds = 1 << 20;

double Seconds(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double ReadPass(const uint8_t* data, int64_t streams, ThreadPool& pool) {
  std::atomic<uint64_t> total{0};
  const auto begin = Clock::now();
  pool.ParallelFor(kReadBytes / kChunkBytes, [&](int64_t task, int) {
    total += HWY_DYNAMIC_DISPATCH(SumWords)(data + task * kChunkBytes, kChunkBytes, streams);
  });
  const double seconds = Seconds(begin);
  // The buffer holds ones: a wrong sum is a pass that did not read.
  return total == kReadBytes / 8 * uint64_t{0x0101010101010101} ? kReadBytes / seconds * 1e-9 : 0;
}

}  // namespace

double MeasureReadBandwidth(ThreadPool& pool) {
  // The reads ahead of the end stay in the buffer.
  auto buffer = HugeBuffer::Allocate(kReadBytes + kChunkBytes);
  if (!buffer.ok()) return 0;
  uint8_t* data = buffer->data();
  pool.ParallelFor(kReadBytes / kChunkBytes, [&](int64_t task, int) {
    std::fill_n(data + task * kChunkBytes, kChunkBytes, uint8_t{1});
  });
  double best = 0;
  for (int64_t streams : {1, 2, 4}) {
    for (int pass = 0; pass < kPasses; ++pass) best = std::max(best, ReadPass(data, streams, pool));
  }
  return best;
}

double MeasureFmaRate(ThreadPool& pool) {
  double best = 0;
  std::vector<float> sinks(pool.num_threads(), 0.5f);
  for (int pass = 0; pass < kPasses; ++pass) {
    std::atomic<int64_t> flops{0};
    const auto begin = Clock::now();
    pool.ParallelFor(pool.num_threads() * int64_t{16}, [&](int64_t, int thread) {
      sinks[thread] = 0.5f;
      flops += HWY_DYNAMIC_DISPATCH(MultiplyAdd)(kRounds / 16, &sinks[thread]);
    });
    best = std::max(best, static_cast<double>(flops) / Seconds(begin) * 1e-9);
  }
  return best;
}

}  // namespace jevons
#endif
