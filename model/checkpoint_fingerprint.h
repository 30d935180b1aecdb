// What tells two checkpoint folders apart, without reading their weights.
#pragma once

#include <string>

#include "base/status.h"

namespace jevons {

// Of names and sizes of the folder's JSON and safetensors files, of all bytes of the JSON files, and of
// samples of the safetensors files: "2 files, 10485760 bytes, 9f86d081884c7d65". The same for copies of
// a folder. NOT_FOUND for no folder or one without such files.
absl::StatusOr<std::string> CheckpointFingerprint(const std::string& folder);

}  // namespace jevons
