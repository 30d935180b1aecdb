// A checkpoint that says a chosen list of different tokens: what a model writes is then known
// without training one.
#pragma once

#include <string>
#include <vector>

#include "base/random.h"
#include "model/tensor_specs.h"
#include "tests/support/checkpoint_writer.h"

namespace jevons {

// After words[i] comes words[i + 1], greedily; after the last one the first. The residual stream is
// the embedding alone, because every output projection is zero, and the head row of a word is the
// embedding of the word before.
inline void WriteParrot(const std::string& folder, const nlohmann::json& config_json,
                        const std::vector<int32_t>& words) {
  const auto config = ParseModelConfig(config_json.dump(), "");
  ASSERT_TRUE(config.ok()) << config.status();
  Random random(99);
  const auto vocab = static_cast<size_t>(config->vocab_size);
  const auto hidden = static_cast<size_t>(config->hidden_size);
  std::vector<float> embedding(vocab * hidden);
  for (float& x : embedding) x = random.Below(2) == 0 ? -1.0f : 1.0f;
  std::vector<float> head(vocab * hidden, 0.0f);
  for (size_t i = 0; i < words.size(); ++i) {
    const auto from = static_cast<size_t>(words[i]);
    const auto to = static_cast<size_t>(words[(i + 1) % words.size()]);
    std::copy_n(embedding.begin() + from * hidden, hidden, head.begin() + to * hidden);
  }
  CheckpointWriter writer;
  for (const TensorSpec& spec : ExpectedTensors(*config)) {
    size_t count = 1;
    for (int64_t dim : spec.shape) count *= static_cast<size_t>(dim);
    std::vector<float> values(count, spec.kind == TensorKind::kNorm ? 1.0f : 0.0f);
    if (spec.name == kEmbedTensor) values = embedding;
    if (spec.name == kHeadTensor) values = head;
    writer.AddBf16(spec.name, spec.shape, values);
  }
  WriteFile(folder + "/config.json", config_json.dump(1));
  writer.WriteSingle(folder);
}

}  // namespace jevons
