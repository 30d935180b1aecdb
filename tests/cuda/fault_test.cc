// Every call of the CUDA runtime that a run makes fails once: each run ends in a reason for every
// stream, without a hang and without a leak.
#include <string>
#include <vector>

#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/faults.h"
#include "tests/cuda_emu/runtime.h"
#include "tests/support/engine_run.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

// Loads, serves two requests and stops. OK if both ran to their end.
absl::Status RunOnce() {
  ModelConfig config = TinyV3Config();
  config.num_hidden_layers = 2;
  EngineOptions options;
  options.backend = BackendKind::kCuda;
  options.kv_cache_tokens = 256;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 2;
  options.max_model_len = 64;
  const RealClock clock;
  const RandomCheckpoint checkpoint(config, 7);
  auto model = LoadModel(options, config, checkpoint, nullptr, nullptr);
  RETURN_IF_ERROR(model.status());
  auto engine = StartEngine(*std::move(model), &clock);
  GenerationRequest request;
  request.prompt_ids = {3, 4, 5, 6, 7};
  request.max_new_tokens = 3;
  request.ignore_eos = true;
  absl::Status out;
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 2; ++i) {
    auto stream = engine->Submit(request);
    if (stream.ok()) {
      streams.push_back(*stream);
    } else {
      out = stream.status();
    }
  }
  for (auto& stream : streams) {
    const Outcome outcome = ReadAll(*stream);
    EXPECT_NE(outcome.end.reason, FinishReason::kNone);
    if (!outcome.end.error.ok()) out = outcome.end.error;
  }
  EXPECT_TRUE(engine->CheckIntegrity().ok());
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.num_free_blocks, stats.num_blocks);
  return out;
}

class FaultTest : public testing::TestWithParam<Fault> {};

TEST_P(FaultTest, AFailureAtAnyCallEndsInAReasonAndLeavesNothing) {
  emu::ResetCalls();
  ASSERT_TRUE(RunOnce().ok());
  const int64_t num_calls = emu::NumCalls(GetParam().kind);
  ASSERT_GT(num_calls, 0);
  // Steps that meet every phase of loading, recording and serving.
  const int64_t step = std::max<int64_t>(num_calls / 60, 1);
  for (int64_t n = 1; n <= num_calls; n += step) {
    SCOPED_TRACE(GetParam().name + " " + std::to_string(n) + " of " + std::to_string(num_calls));
    emu::ResetCalls();
    emu::FailNth(GetParam().kind, n, GetParam().error);
    const absl::Status status = RunOnce();
    if (!status.ok()) {
      EXPECT_FALSE(status.message().empty());
      EXPECT_NE(status.code(), absl::StatusCode::kCancelled);
    }
    emu::ResetCalls();
    cudaDeviceReset();
    ASSERT_EQ(emu::OutstandingObjects().total(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, FaultTest, testing::ValuesIn(kFaults),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace jevons
