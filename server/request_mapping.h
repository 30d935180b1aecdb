// From messages of the wire to what the engine takes.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/time/time.h"
#include "base/status.h"
#include "engine/generation.h"
#include "jevons/v1/inference.pb.h"
#include "nlohmann/json.hpp"
#include "server/prompt.h"

namespace jevons {

// What a request leaves open and the call decides.
struct CallDefaults {
  absl::Time deadline = absl::InfiniteFuture();
  uint64_t seed = 0;  // where the request has none
};

// NOT_FOUND unless `model` is empty or `served`.
absl::Status CheckModel(std::string_view model, std::string_view served);

// The conversation as ChatFormat::Render takes it. INVALID_ARGUMENT names the field as
// `chat.<path>`.
absl::StatusOr<nlohmann::ordered_json> MapChat(const v1::Chat& chat);

// Checks what only the wire form knows (presence, names, JSON texts) and builds the prompt. All
// other limits are ValidateGeneration's, which Engine::Submit calls.
absl::StatusOr<GenerationRequest> MapGenerateRequest(const v1::GenerateRequest& request,
                                                     const PromptBuilder& prompts,
                                                     const CallDefaults& defaults);

}  // namespace jevons
