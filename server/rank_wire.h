// Between the engine's types and the messages of the control plane: what goes one way and back is the
// same to the bit.
#pragma once

#include "base/status.h"
#include "engine/engine.h"
#include "engine/generation.h"
#include "engine/process_rank.h"
#include "engine/rank.h"
#include "engine/token_stream.h"
#include "jevons/internal/v1/ranks.pb.h"
#include "scheduler/prefix_cache.h"

namespace jevons {

namespace wire = internal::v1;

// Without what it has given; SetGiven makes it a request that is taken over.
wire::Submit ToWire(uint64_t id, const GenerationRequest& request, absl::Time now);
void SetGiven(const GivenOutput& given, wire::Submit* submit);
GenerationRequest FromWire(const wire::Submit& submit, absl::Time now);

wire::ToRank ToWire(const Membership& membership);
Membership FromWire(const wire::Regroup& regroup);

wire::Chunk ToWire(uint64_t id, const StreamChunk& chunk);
StreamChunk FromWire(wire::Chunk chunk);

wire::ToRank ToWire(const GroupShape& shape);
GroupShape FromWire(const wire::GroupShape& shape);

wire::FromRank ToWire(const GroupBreak& seen);
GroupBreak FromWire(const wire::Broken& broken);

wire::Heartbeat ToWire(const EngineStats& stats);
EngineStats FromWire(const wire::Heartbeat& heartbeat);
void SetPrefixChanges(const PrefixChanges& changes, wire::Heartbeat* heartbeat);
PrefixChanges PrefixChangesFromWire(const wire::Heartbeat& heartbeat);

wire::Error ToWire(const absl::Status& status);
absl::Status FromWire(const wire::Error& error);

}  // namespace jevons
