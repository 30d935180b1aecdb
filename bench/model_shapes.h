// Published dimensions of the models that benches make with random weights.
#pragma once

#include "model/config.h"

namespace jevons {

ModelConfig V2LiteShape();  // DeepSeek-V2-Lite
ModelConfig V3Shape();      // DeepSeek-V3

}  // namespace jevons
