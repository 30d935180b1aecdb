#include "model/rope_config.h"

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace jevons {
namespace {

using nlohmann::json;

constexpr IntRange kPositions = {1, 1 << 27};

struct Theta {
  std::string name;
  double value;
};

// "default" where the object names none; empty after a problem.
std::string ReadType(ConfigReader* reader) {
  const std::string type = reader->String("type", "");
  const std::string rope_type = reader->String("rope_type", "");
  if (!type.empty() && !rope_type.empty() && type != rope_type) {
    reader->AddWrong(absl::StrCat(reader->Name("type"), " is \"", type, "\" but ",
                                  reader->Name("rope_type"), " is \"", rope_type, "\""));
    return "";
  }
  if (!type.empty()) return type;
  if (!rope_type.empty()) return rope_type;
  if (!reader->Has("factor")) return "default";
  reader->AddWrong(absl::StrCat(reader->Name("factor"), " is given, but ", reader->Name("type"),
                                " (or rope_type) is not"));
  return "";
}

RopeScaling ReadScaling(ConfigReader* reader) {
  RopeScaling out;
  const std::string type = ReadType(reader);
  if (type.empty() || type == "default") return out;
  if (type != "yarn") {
    reader->AddUnsupported(absl::StrCat(reader->Name("type"), " ", ShortJson(type),
                                        " is not supported; supported are default and yarn"));
    return out;
  }
  out.yarn = true;
  out.factor = reader->Number("factor", {1, 1e6});
  out.original_max_position_embeddings =
      reader->Int("original_max_position_embeddings", kPositions);
  out.beta_fast = reader->Number("beta_fast", {0, 1e6, true}, out.beta_fast);
  out.beta_slow = reader->Number("beta_slow", {0, 1e6, true}, out.beta_slow);
  out.mscale = reader->Number("mscale", {0, 100}, out.mscale);
  out.mscale_all_dim = reader->Number("mscale_all_dim", {0, 100}, out.mscale_all_dim);
  if (out.beta_fast < out.beta_slow) {
    reader->AddWrong(absl::StrCat(reader->Name("beta_fast"), " (", out.beta_fast, ") is less than ",
                                  reader->Name("beta_slow"), " (", out.beta_slow, ")"));
  }
  if (reader->Has("attention_factor")) {
    reader->AddUnsupported(absl::StrCat(reader->Name("attention_factor"), " is not supported"));
  }
  if (!reader->Bool("truncate", true)) {
    reader->AddUnsupported(absl::StrCat(reader->Name("truncate"), " false is not supported"));
  }
  return out;
}

// One of the two objects; nothing if absent or of the wrong type.
std::optional<RopeScaling> ReadObject(const json& root, const std::string& key,
                                      ConfigProblems* problems, std::vector<Theta>* thetas) {
  const auto at = root.find(key);
  if (at == root.end() || at->is_null()) return std::nullopt;
  if (!at->is_object()) {
    problems->wrong.push_back(absl::StrCat(key, " is ", ShortJson(*at), ", not an object"));
    return std::nullopt;
  }
  ConfigReader reader(*at, key + ".", problems);
  if (reader.Has("rope_theta")) {
    thetas->push_back({key + ".rope_theta", reader.Number("rope_theta", {1, 1e12, true})});
  }
  return ReadScaling(&reader);
}

}  // namespace

void ReadRope(const json& root, ConfigProblems* problems, ModelConfig* config) {
  std::vector<Theta> thetas;
  ConfigReader reader(root, "", problems);
  if (reader.Has("rope_theta")) {
    thetas.push_back({"rope_theta", reader.Number("rope_theta", {1, 1e12, true})});
  }
  const auto scaling = ReadObject(root, "rope_scaling", problems, &thetas);
  const auto parameters = ReadObject(root, "rope_parameters", problems, &thetas);
  if (scaling && parameters && *scaling != *parameters) {
    problems->wrong.push_back(
        absl::StrCat("rope_scaling ", ShortJson(root["rope_scaling"]), " and rope_parameters ",
                     ShortJson(root["rope_parameters"]), " contradict each other"));
  }
  config->rope_scaling = scaling ? *scaling : parameters.value_or(RopeScaling{});
  if (thetas.empty()) {
    problems->missing.push_back("rope_theta");
    return;
  }
  config->rope_theta = thetas[0].value;
  for (const Theta& theta : thetas) {
    if (theta.value == config->rope_theta) continue;
    problems->wrong.push_back(absl::StrCat(thetas[0].name, " is ", thetas[0].value, " but ",
                                           theta.name, " is ", theta.value));
  }
}

}  // namespace jevons
