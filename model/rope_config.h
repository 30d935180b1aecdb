// The rotary embedding that config.json asks for, in any of the spellings in use.
#pragma once

#include "model/config.h"
#include "model/config_reader.h"
#include "nlohmann/json.hpp"

namespace jevons {

// Sets rope_theta and rope_scaling of `config` from rope_theta, rope_scaling (type or rope_type)
// and rope_parameters (newer files; rope_theta lies inside). Two places that say different things
// are a problem that names both.
void ReadRope(const nlohmann::json& root, ConfigProblems* problems, ModelConfig* config);

}  // namespace jevons
