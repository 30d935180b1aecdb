// From what the engine streams to messages of the wire.
#pragma once

#include <vector>

#include "engine/token_stream.h"
#include "jevons/v1/inference.pb.h"
#include "server/health_monitor.h"

namespace jevons {

// Messages aim to stay below this, so that clients with gRPC's own limit of 4 MB can read all of
// them.
constexpr size_t kMaxResponseBytes = 1 << 20;

enum class TokenIdMode { kOmit, kReturn };

// The messages of one chunk, in order. Where the chunk ends the stream well, the last one is the
// terminal message; where it ends badly, there is none: see EndStatus.
std::vector<v1::GenerateResponse> MapChunk(StreamChunk chunk, TokenIdMode mode);

// OK for an end that has a terminal message; else the status that the call ends with.
absl::Status EndStatus(const StreamEnd& end);

v1::GetStatusResponse MapHealth(const Health& health);

}  // namespace jevons
