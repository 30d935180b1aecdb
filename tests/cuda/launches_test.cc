// How many kernels a step is: between two of them nothing works, and with few tokens that is most of
// what a step loses.
#include <memory>
#include <numeric>
#include <span>

#include "model/model_runner.h"
#include "tests/cuda/backend_fixture.h"
#include "tests/support/fp8_checkpoint.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

class LaunchesTest : public CudaBackendTest {
 protected:
  // As many multiprocessors as the last blocks of 16 tokens want, and the emulator has places for.
  LaunchesTest() {
    backend_ = nullptr;
    emu::SetDevice({.num_sms = 36});
    backend_ = Create({});
  }

  // Of one step with the first tokens of a sequence.
  int64_t KernelsOfAStep(const ModelConfig& config, int32_t num_tokens,
                         ActivationPrecision activations = ActivationPrecision::kExact) {
    std::unique_ptr<Checkpoint> checkpoint = std::make_unique<RandomCheckpoint>(config, 7);
    if (activations == ActivationPrecision::kFp8) {
      checkpoint = std::make_unique<Fp8Checkpoint>(config, 7);
    }
    auto weights = LoadModelWeights(config, *checkpoint, *backend_, {}, activations);
    EXPECT_TRUE(weights.ok()) << weights.status();
    auto runner = ModelRunner::Create(config, *std::move(weights), backend_.get(),
                                      {.max_tokens = 40, .max_num_seqs = 1, .max_positions = 64});
    EXPECT_TRUE(runner.ok()) << runner.status();
    std::vector<int32_t> positions(num_tokens);
    std::iota(positions.begin(), positions.end(), 0);
    const std::vector<int64_t> slots(positions.begin(), positions.end());
    const std::vector<int32_t> cu = {0, num_tokens};
    const std::vector<int32_t> context = {num_tokens};
    const std::vector<int32_t> table = {0};
    int64_t kernels = 0;
    // The first takes what memory it needs.
    for (int i = 0; i < 2; ++i) {
      emu::ResetCalls();
      const absl::Status status = (*runner)->Run({.token_ids = positions,
                                                  .positions = positions,
                                                  .slot_mapping = slots,
                                                  .cu_seqlens_q = cu,
                                                  .context_lens = context,
                                                  .block_tables = table,
                                                  .max_blocks = 1});
      EXPECT_TRUE(status.ok()) << status;
      char nothing = 0;
      EXPECT_TRUE(backend_->Read(Bytes(&nothing, 0), Bytes(&nothing, 0)).ok());
      kernels = emu::NumCalls(emu::CallKind::kExecution);
    }
    return kernels;
  }
  int64_t KernelsOfAMoeLayer(ModelConfig config, int32_t num_tokens,
                             ActivationPrecision activations = ActivationPrecision::kExact) {
    const int64_t without = KernelsOfAStep(config, num_tokens, activations);
    ++config.num_hidden_layers;
    return KernelsOfAStep(config, num_tokens, activations) - without;
  }
};

// Attention has three, its last product none. V3 has a product more, of the low-rank query.
TEST_F(LaunchesTest, AMoeLayerOfOneTokenHasThreeKernelsBesideAttention) {
  EXPECT_EQ(KernelsOfAMoeLayer(TinyV2Config(), 1), 6);
  EXPECT_EQ(KernelsOfAMoeLayer(TinyV2Config(), 8), 6);
  EXPECT_EQ(KernelsOfAMoeLayer(TinyV3Config(), 1), 7);
  EXPECT_EQ(KernelsOfAMoeLayer(TinyV3Config(), 4), 7);
}

// The low-rank query with the keys, the query, the output, which the router's kernel does not take
// then, and the experts' two.
TEST_F(LaunchesTest, RoundedActivationsAddOneForEachProductOfFp8Weights) {
  EXPECT_EQ(KernelsOfAMoeLayer(TinyV3Config(), 1, ActivationPrecision::kFp8), 8 + 5);
}

// Values apart from attention; of this V3 the router too, whose last blocks would be too few.
TEST_F(LaunchesTest, AMoeLayerOfALargerStepHasOneMore) {
  ModelConfig v2 = TinyV2Config();
  ModelConfig v3 = TinyV3Config();
  v2.hidden_size = v3.hidden_size = 128;
  EXPECT_EQ(KernelsOfAMoeLayer(v2, 9), 7);
  EXPECT_EQ(KernelsOfAMoeLayer(v2, 16), 7);
  EXPECT_EQ(KernelsOfAMoeLayer(v3, 9), 7 + 2);
}

TEST_F(LaunchesTest, ADenseLayerOfOneTokenHasEight) {
  for (const auto& [config, want] : {std::pair(TinyV2Config(), 8), std::pair(TinyV3Config(), 9)}) {
    ModelConfig more = config;
    ++more.num_hidden_layers;
    ++more.first_k_dense_replace;
    EXPECT_EQ(KernelsOfAStep(more, 1) - KernelsOfAStep(config, 1), want);
  }
}

}  // namespace
}  // namespace jevons
