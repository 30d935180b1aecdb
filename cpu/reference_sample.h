// The plain twin of SampleTokens.
#pragma once

#include <vector>

#include "ops/sample.h"

namespace jevons::reference {

void SampleTokens(const SampleTokensArgs& args);

// The ids that row r may draw, most likely first; empty where the row is lost.
std::vector<int32_t> SampleKeptIds(const SampleTokensArgs& args, int64_t r);

}  // namespace jevons::reference
