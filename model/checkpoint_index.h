// model.safetensors.index.json: which file of a checkpoint holds which tensor.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "base/status.h"

namespace jevons {

// Tensor name to file name, from the text of an index. INVALID_ARGUMENT for text that is not JSON,
// no weight_map, a name twice, or a file name that is not a plain name in the same folder.
absl::StatusOr<std::map<std::string, std::string>> ParseCheckpointIndex(std::string_view json);

}  // namespace jevons
