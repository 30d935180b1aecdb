// A whole model with cuBLASLt for its dense products: nearly the numbers of ours, and the bits of ours
// where steps are too small for it.
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "tests/cuda_emu/cublaslt_plan.h"
#include "tests/cuda_emu/tests/emu_test.h"
#include "tests/support/engine_run.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

class CublasLtEngineTest : public emu::EmuTest {
 protected:
  CublasLtEngineTest() { emu::ResetCublasLt(); }
  ~CublasLtEngineTest() override { emu::ResetCublasLt(); }

  struct Result {
    Outcome outcome;
    int64_t products = 0;       // before the first request
    int64_t calls_serving = 0;  // of the library, since then
  };
  // A prompt of seven tokens and three that are drawn.
  static Result Run(int32_t cublaslt_rows) {
    ModelConfig config = TinyV3Config();
    config.num_hidden_layers = 2;
    EngineOptions options;
    options.kv_cache_tokens = 256;
    options.max_num_seqs = 2;
    options.max_num_batched_tokens = 8;
    options.max_model_len = 64;
    options.cublaslt_rows = cublaslt_rows;
    const RealClock clock;
    const std::unique_ptr<Engine> engine = StartTinyEngine(config, options, &clock);
    Result out = {.outcome = {}, .products = emu::NumCublasLtProducts()};
    const int64_t calls = emu::NumCublasLtCalls();
    Random random(3);
    out.outcome = RunTogether(*engine, {RandomRequest(0, 7, 3, random)})[0];
    out.calls_serving = emu::NumCublasLtCalls() - calls;
    EXPECT_TRUE(out.outcome.end.error.ok()) << out.outcome.end.error;
    return out;
  }
};

TEST_F(CublasLtEngineTest, GivesNearlyTheNumbersOfOursFromStepsThatAreRecordedAsEver) {
  const Outcome want = Run(0).outcome;
  ExpectSame(Run(64).outcome, want);
  EXPECT_EQ(emu::NumCublasLtProducts(), 0);
  const Result got = Run(4);
  EXPECT_GT(got.products, 0);
  EXPECT_EQ(got.calls_serving, 0);
  EXPECT_EQ(emu::OutstandingCublasLt(), 0);
  ASSERT_EQ(want.prompt_logprobs.size(), 6);
  ASSERT_EQ(got.outcome.prompt_logprobs.size(), 6);
  for (size_t i = 0; i < 6; ++i) {
    const float logprob = want.prompt_logprobs[i].chosen.logprob;
    EXPECT_LT(logprob, 0);
    EXPECT_NEAR(got.outcome.prompt_logprobs[i].chosen.logprob, logprob, 0.02);
  }
}

}  // namespace
}  // namespace jevons
