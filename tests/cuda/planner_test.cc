// What a model would take of a device, against what it takes.
#include <cstdint>

#include "cuda/round_rows.h"
#include "engine/memory_plan.h"
#include "tests/cuda/backend_fixture.h"
#include "tests/support/fp8_checkpoint.h"
#include "tests/support/test_data.h"
#include "tests/support/tiny_model.h"

namespace jevons {
namespace {

using absl::StatusCode;

// A device as the emulator has it.
const emu::DeviceOptions kPlannedDevice;
CudaDeviceSpec PlannedSpec() {
  return {.name = "emulated",
          .memory_bytes = kPlannedDevice.memory_bytes,
          .sm = kPlannedDevice.major * 10,
          .num_sms = kPlannedDevice.num_sms};
}

void ExpectWithinOnePercent(int64_t planned, int64_t taken) {
  EXPECT_NEAR(static_cast<double>(planned), static_cast<double>(taken),
              0.01 * static_cast<double>(taken));
}

class CudaPlannerTest : public CudaBackendTest {
 protected:
  CudaPlannerTest() { planner_ = *CreateCudaPlanner(PlannedSpec()); }

  std::unique_ptr<Backend> planner_;
};

TEST_F(CudaPlannerTest, WeightsTakeWhatWasPlanned) {
  for (const ModelConfig& config : {TinyV2Config(), TinyV3Config()}) {
    const RandomCheckpoint checkpoint(config, 7);
    const int64_t before = planner_->AvailableBytes();
    auto planned = LoadModelWeights(config, checkpoint, *planner_);
    ASSERT_TRUE(planned.ok()) << planned.status();
    const int64_t planned_bytes = before - planner_->AvailableBytes();
    auto loaded = LoadModelWeights(config, checkpoint, *backend_);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(planned->matrix_bytes, loaded->matrix_bytes);
    const int64_t with_weights = backend_->AvailableBytes();
    loaded = absl::UnknownError("freed");
    ExpectWithinOnePercent(planned_bytes, backend_->AvailableBytes() - with_weights);
  }
}

class PlannedRunnerTest : public CudaPlannerTest,
                          public testing::WithParamInterface<ActivationPrecision> {};
INSTANTIATE_TEST_SUITE_P(Activations, PlannedRunnerTest,
                         testing::Values(ActivationPrecision::kExact, ActivationPrecision::kFp8),
                         [](const auto& info) {
                           return std::string(ActivationPrecisionName(info.param));
                         });

TEST_P(PlannedRunnerTest, TakesWhatWasPlannedBesideTheWeights) {
  const ModelConfig config = TinyV3Config();
  const Fp8Checkpoint checkpoint(config, 7);
  int64_t taken[2] = {};
  int64_t num_allocations = 0;
  for (Backend* backend : {planner_.get(), backend_.get()}) {
    auto weights = LoadModelWeights(config, checkpoint, *backend, {}, GetParam());
    ASSERT_TRUE(weights.ok()) << weights.status();
    const int64_t loaded = backend->AvailableBytes();
    num_allocations = emu::OutstandingAllocations();
    auto runner = ModelRunner::Create(config, *std::move(weights), backend,
                                      {.max_tokens = 8,
                                       .max_num_seqs = 4,
                                       .max_positions = 64,
                                       .max_logits_rows = 4,
                                       .num_valid_ids = config.vocab_size,
                                       .num_blocks = 4,
                                       .block_tokens = 64});
    ASSERT_TRUE(runner.ok()) << runner.status();
    const absl::Status warm = (*runner)->WarmUp();
    ASSERT_TRUE(warm.ok()) << warm;
    taken[backend == backend_.get()] = loaded - backend->AvailableBytes();
    num_allocations = emu::OutstandingAllocations() - num_allocations;
  }
  // The plan rounds each allocation as the driver does, the emulator does not.
  constexpr int64_t kUnitBytes = 512;
  EXPECT_GE(taken[0], taken[1]);
  EXPECT_LT(taken[0], taken[1] + num_allocations * kUnitBytes);
}

// Of a rank of two the experts' products may have the tokens of both.
TEST_F(CudaPlannerTest, RoundedRowsTakeWhatWasPlannedAndNoStepTakesMore) {
  constexpr int64_t kColumns = 200;
  constexpr int64_t kRows = 1000;
  TestTensor data(DType::kF8E4M3, {64, kColumns});
  TestTensor scale(DType::kF32, {1, 2});
  WeightSpec spec = {{{{data.FillNormal(random_).view(), scale.FillNormal(random_).view()}}}};
  spec.input = ActivationPrecision::kFp8;
  const DeviceTensor x = Normal(DType::kBF16, {kRows, kColumns});
  const DeviceTensor out = Normal(DType::kBF16, {kRows, 64});
  const int64_t row_bytes = cuda::RoundedRowBytes(kColumns, kPlannedDevice.major == 9);
  for (Backend* backend : {planner_.get(), backend_.get()}) {
    const auto weight = backend->PackWeight(spec);
    ASSERT_TRUE(weight.ok()) << weight.status();
    const int64_t before = backend->AvailableBytes();
    ASSERT_TRUE(backend->PrepareProducts(**weight, kRows).ok());
    const int64_t after = backend->AvailableBytes();
    EXPECT_EQ(before - after, kRows * row_bytes);
    ASSERT_TRUE(backend->Linear({x.view, weight->get(), {}, out.view}).ok());
    EXPECT_EQ(backend->AvailableBytes(), after);
  }
}

// Beside what it takes in steps, which is the same.
TEST_F(CudaPlannerTest, ABackendWithCublasLtTakesItsScratchAtTheStart) {
  const CudaBackendOptions options = {.cublaslt_rows = 16};
  const auto planned = CreateCudaPlanner(PlannedSpec(), options);
  ASSERT_TRUE(planned.ok()) << planned.status();
  const int64_t before = backend_->AvailableBytes();
  const auto with = Create(options);
  const int64_t taken = before - backend_->AvailableBytes();
  EXPECT_GT(taken, 0);
  EXPECT_EQ(planner_->AvailableBytes() - (*planned)->AvailableBytes(), taken);
}

TEST_F(CudaPlannerTest, AModelThatIsTooLargeIsPlannedBelowZero) {
  auto buffer = planner_->Allocate(int64_t{1} << 40);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ((*buffer)->bytes(), int64_t{1} << 40);
  EXPECT_LT(planner_->AvailableBytes(), kPlannedDevice.memory_bytes - (int64_t{1} << 40));
}

TEST(MemoryPlanTest, AnFp8CacheHoldsMoreTokensInWhatIsLeft) {
  EngineOptions options;
  options.model_folder = DataPath("configs/DeepSeek-V2-Lite");
  const auto bf16 = PlanMemory(options, "h100");
  options.kv_cache = KvCacheType::kFp8;
  const auto fp8 = PlanMemory(options, "h100");
  ASSERT_TRUE(bf16.ok()) << bf16.status();
  ASSERT_TRUE(fp8.ok()) << fp8.status();
  EXPECT_EQ(bf16->kv_bytes_per_token, 27 * 1152);
  EXPECT_EQ(fp8->kv_bytes_per_token, 27 * 656);
  EXPECT_EQ(fp8->free_bytes(), bf16->free_bytes());
  EXPECT_EQ(fp8->kv_cache_tokens, fp8->free_bytes() / (27 * 656));
  // What bf16 cannot hold is refused with a hint, and fits as FP8.
  options.kv_cache_tokens = bf16->kv_cache_tokens * 3 / 2;
  EXPECT_TRUE(CheckFits(*fp8, options).ok());
  options.kv_cache = KvCacheType::kAuto;
  ExpectError(CheckFits(*bf16, options), StatusCode::kResourceExhausted, {"kv-cache-dtype fp8"});
}

TEST(MemoryPlanTest, CublasLtTakesOfTheWorkspace) {
  EngineOptions options;
  options.model_folder = DataPath("configs/DeepSeek-V2-Lite");
  const auto without = PlanMemory(options, "h100");
  options.cublaslt_rows = 512;
  const auto with = PlanMemory(options, "h100");
  ASSERT_TRUE(without.ok()) << without.status();
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_EQ(with->workspace_bytes - without->workspace_bytes, int64_t{96} << 20);
  EXPECT_EQ(with->weight_bytes, without->weight_bytes);
  options.backend = BackendKind::kCpu;
  ExpectError(PlanMemory(options, "h100"), StatusCode::kInvalidArgument,
              {"cublaslt-rows 512", "given cpu"});
}

TEST(MemoryPlanTest, RowsOfFp8AreForAModelWithFp8Weights) {
  EngineOptions options;
  options.model_folder = DataPath("configs/DeepSeek-V2-Lite");
  options.activation_precision = ActivationPrecision::kFp8;
  ExpectError(PlanMemory(options, "h100"), StatusCode::kInvalidArgument,
              {"activation-precision fp8", "FP8 weights"});
}

TEST(MemoryPlanTest, ARankHoldsItsShareOfTheExpertsAndRowsOfTheOthers) {
  EngineOptions options;
  options.model_folder = DataPath("configs/DeepSeek-V2-Lite");
  const auto alone = PlanMemory(options, "h100");
  options.rank_transport = RankTransport::kNccl;
  options.num_ranks = 8;
  const auto eighth = PlanMemory(options, "h100");
  options.num_redundant_experts = 8;
  const auto more = PlanMemory(options, "h100");
  ASSERT_TRUE(alone.ok()) << alone.status();
  ASSERT_TRUE(eighth.ok()) << eighth.status();
  ASSERT_TRUE(more.ok()) << more.status();
  // 26 layers with 64 experts of three matrices 2048 x 1408 in bf16.
  const int64_t expert_bytes = int64_t{26} * 3 * 2048 * 1408 * 2;
  ExpectWithinOnePercent(alone->weight_bytes - eighth->weight_bytes, 56 * expert_bytes);
  ExpectWithinOnePercent(more->weight_bytes - eighth->weight_bytes, expert_bytes);
  // A layer of a rank's experts once more, with the two shared ones.
  EXPECT_EQ(alone->moving_bytes, 0);
  ExpectWithinOnePercent(eighth->moving_bytes, 10 * expert_bytes / 26);
  // Rows that arrive and results for them, of seven others: at least two of bf16.
  EXPECT_GT(eighth->workspace_bytes, alone->workspace_bytes + 2 * 7 * 512 * 2048 * 2);
}

TEST(CudaDeviceSpecTest, KnownDevicesHaveTheirFactsAndOthersAreNamed) {
  for (const char* name : {"a100", "h100", "h200", "b200"}) {
    const auto spec = FindCudaDeviceSpec(name);
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->name, name);
    EXPECT_GT(spec->memory_bytes, int64_t{70} << 30);
    EXPECT_TRUE(spec->sm == 80 || spec->sm == 90 || spec->sm == 100);
    EXPECT_GT(spec->num_sms, 100);
  }
  ExpectError(FindCudaDeviceSpec("v100"), StatusCode::kInvalidArgument,
              {"a100", "h100", "h200", "b200", "\"v100\""});
}

}  // namespace
}  // namespace jevons
