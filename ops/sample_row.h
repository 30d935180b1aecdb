// What one row of SampleTokens asks for, and the numbers that every backend must draw alike.
// Standard headers only: kernels include it.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/host_device.h"
#include "base/philox.h"

namespace jevons {

enum class SampleMode : int32_t {
  kDraw,
  kScore,  // no draw: the token is score_id
  kSkip,   // a padding row: nothing is read or written
};

// In device memory as it stands here. Values are checked at the door of the server, not here.
struct SampleRow {
  SampleMode mode = SampleMode::kDraw;
  int32_t score_id = -1;
  float temperature = 1;         // >= 0; 0 is greedy
  int32_t top_k = 0;             // <= 0: all
  float top_p = 1;               // (0, 1]
  float min_p = 0;               // [0, 1]: least probability as a fraction of the largest
  float repetition_penalty = 1;  // > 0; 1 is none
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int32_t mask_row = -1;  // row of the masks; -1: all ids are allowed
  int32_t num_top = 0;    // most likely ids to report, at most the width of top_ids
  uint64_t seed = 0;
  int64_t token_idx = 0;  // the number of new tokens before this one
};
static_assert(sizeof(SampleRow) == 64);

// The logit of an id that has been in the text, `count` times of those in what was generated. The
// same bits everywhere.
JEVONS_HOST_DEVICE inline float PenalizedLogit(float logit, const SampleRow& row, int32_t count) {
  const float repeated =
      logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  const float frequent = fmaf(-row.frequency_penalty, static_cast<float>(count), repeated);
  return count > 0 ? frequent - row.presence_penalty : frequent;
}

JEVONS_HOST_DEVICE inline float Log(float value) { return logf(value); }
JEVONS_HOST_DEVICE inline double Log(double value) { return log(value); }
JEVONS_HOST_DEVICE inline float Log1p(float value) { return log1pf(value); }
JEVONS_HOST_DEVICE inline double Log1p(double value) { return log1p(value); }

// The random words of the ids 4 * quad .. 4 * quad + 3 at one place of one request. `fine` words
// stand behind the others where those are small. Upper halves of the counter other than 0 keep
// clear of RandomBits.
JEVONS_HOST_DEVICE inline RandomWords DrawWords(uint64_t seed, int64_t token_idx, int32_t quad,
                                                bool fine) {
  const uint64_t high = (fine ? uint64_t{2} : uint64_t{1}) << 32 | static_cast<uint32_t>(quad);
  return Philox(seed, static_cast<uint64_t>(token_idx), high);
}
// Below it a word has too few bits for its logarithm.
constexpr uint32_t kFineBelow = 1u << 16;
JEVONS_HOST_DEVICE inline uint32_t FineWord(uint64_t seed, int64_t token_idx, int32_t id) {
  const RandomWords words = DrawWords(seed, token_idx, id / 4, true);
  const uint32_t low = id % 2 == 0 ? words.word[0] : words.word[1];
  const uint32_t high = id % 2 == 0 ? words.word[2] : words.word[3];
  return id % 4 < 2 ? low : high;
}

// An exponential variate: -log(1 - v) of a uniform v made of the word's bits, at both ends exact to
// Real's precision. `fine` matters where word < kFineBelow.
template <typename Real>
JEVONS_HOST_DEVICE inline Real Exponential(uint32_t word, uint32_t fine) {
  const Real half = static_cast<Real>(0.5);
  if (word < kFineBelow) {
    const uint64_t both = static_cast<uint64_t>(word) << 32 | fine;
    return -Log1p(-(static_cast<Real>(both) + half) * static_cast<Real>(0x1p-64));
  }
  if (word < 1u << 31)
    return -Log1p(-(static_cast<Real>(word) + half) * static_cast<Real>(0x1p-32));
  return -Log((static_cast<Real>(~word) + half) * static_cast<Real>(0x1p-32));
}

}  // namespace jevons
