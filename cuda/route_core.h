// The numbers of the router that do not depend on how threads share a row. Contract: RouteTopK in
// ops/moe.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/host_device.h"

namespace jevons::cuda {

// exp(logit - largest). The difference is rounded, and far from the largest its error would be that
// of the result; the second factor mends it.
JEVONS_HOST_DEVICE inline float SoftmaxTerm(float logit, float largest) {
  const float difference = logit - largest;
  const float back = difference + largest;
  const float error = (logit - back) - (largest - (back - difference));
  // Infinite or NaN: there is nothing to mend.
  return expf(difference) * (1.0f + (fabsf(error) < 1.0f ? error : 0.0f));
}

JEVONS_HOST_DEVICE inline float Sigmoid(float logit) {
  const float e = expf(-fabsf(logit));
  return (logit < 0 ? e : 1.0f) / (1.0f + e);
}

// The two largest of what was added; the order of adding does not matter.
struct TwoLargest {
  float first = -INFINITY;
  float second = -INFINITY;

  JEVONS_HOST_DEVICE void Add(float value) {
    second = fmaxf(second, fminf(first, value));
    first = fmaxf(first, value);
  }
};

// Whether a comes before b: larger first, equal ones by lower index.
JEVONS_HOST_DEVICE inline bool ComesBefore(float a, int a_idx, float b, int b_idx) {
  return a > b || (a == b && a_idx < b_idx);
}

JEVONS_HOST_DEVICE inline float RouteWeight(float score, float score_sum, bool normalize,
                                            float scale) {
  return (normalize ? score / (score_sum + 1e-20f) : score) * scale;
}

}  // namespace jevons::cuda
