// Steps that are recorded: a replay is the step, and a recording that fails leaves nothing.
#include <cstdint>
#include <vector>

#include "tests/cuda/backend_fixture.h"

namespace jevons {
namespace {

using absl::StatusCode;

// A step of two ops: a norm, and a product with what it wrote.
class RecordedStepTest : public CudaBackendTest {
 protected:
  static constexpr int64_t kHidden = 64;
  static constexpr int64_t kTokens = 3;

  RecordedStepTest() {
    x_ = Normal(DType::kF32, {kTokens, kHidden});
    norm_ = Normal(DType::kF32, {kHidden});
    normed_ = Normal(DType::kBF16, {kTokens, kHidden});
    out_ = Normal(DType::kF32, {kTokens, kHidden});
    weight_ = Pack(*backend_, {{kHidden}}, kHidden);
  }

  absl::Status Ops() {
    ++num_calls_;
    RETURN_IF_ERROR(backend_->RmsNorm({x_.view, {}, norm_.view, 1e-6f, normed_.view}));
    return backend_->Linear({normed_.view, weight_.get(), {}, out_.view});
  }
  absl::Status Run(int64_t key = 1) {
    return backend_->RunStep(key, [this] { return Ops(); });
  }
  // What the step writes for an input, from outputs that held something else.
  std::vector<uint8_t> Result(TestTensor& input) {
    TestTensor before(DType::kF32, {kTokens, kHidden});
    EXPECT_TRUE(backend_->Write(out_.view, before.view()).ok());
    EXPECT_TRUE(backend_->Write(x_.view, input.view()).ok());
    const absl::Status status = Run();
    EXPECT_TRUE(status.ok()) << status;
    return ReadBack(out_.view);
  }
  TestTensor Input() { return TestTensor(DType::kF32, {kTokens, kHidden}).FillNormal(random_); }

  DeviceTensor x_, norm_, normed_, out_;
  std::unique_ptr<Weight> weight_;
  int num_calls_ = 0;
};

TEST_F(RecordedStepTest, TheSecondCallRecordsAndLaterOnesReplay) {
  TestTensor input = Input();
  const std::vector<uint8_t> eager = Result(input);
  EXPECT_EQ(emu::OutstandingObjects().graph_execs, 0);
  EXPECT_EQ(Result(input), eager);
  EXPECT_EQ(num_calls_, 2);
  EXPECT_EQ(emu::OutstandingObjects().graph_execs, 1);
  EXPECT_EQ(emu::OutstandingObjects().graphs, 0);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Result(input), eager);
  EXPECT_EQ(num_calls_, 2);
}

TEST_F(RecordedStepTest, AReplaySeesWhatWasWrittenSince) {
  TestTensor first = Input();
  TestTensor second = Input();
  const std::vector<uint8_t> of_first = Result(first);
  const std::vector<uint8_t> of_second = Result(second);
  EXPECT_NE(of_first, of_second);
  EXPECT_EQ(Result(first), of_first);
  EXPECT_EQ(Result(second), of_second);
  EXPECT_EQ(num_calls_, 2);
}

TEST_F(RecordedStepTest, EachKeyHasARecordingOfItsOwn) {
  for (int i = 0; i < 3; ++i) {
    for (int64_t key : {int64_t{0}, int64_t{-5}, INT64_MAX}) {
      const absl::Status status = Run(key);
      EXPECT_TRUE(status.ok()) << status;
    }
  }
  EXPECT_EQ(num_calls_, 6);
  EXPECT_EQ(emu::OutstandingObjects().graph_execs, 3);
}

TEST_F(RecordedStepTest, WithoutRecordingEveryCallRuns) {
  backend_ = nullptr;
  backend_ = Create({.records_steps = false});
  EXPECT_FALSE(backend_->traits().records_steps);
  weight_ = Pack(*backend_, {{kHidden}}, kHidden);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Run().ok());
  EXPECT_EQ(num_calls_, 3);
  EXPECT_EQ(emu::OutstandingObjects().graph_execs, 0);
}

// From sm_90 on. The first one finds what was written since the step before.
TEST_F(RecordedStepTest, AllKernelsOfAStepButTheFirstMayBeginEarly) {
  for (const bool early : {true, false}) {
    backend_ = nullptr;
    backend_ = Create({.early_launches = early});
    weight_ = Pack(*backend_, {{kHidden}}, kHidden);
    // In a recording all of them do.
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(Run().ok());
    TestTensor input = Input();
    EXPECT_TRUE(backend_->Wait().ok());
    emu::ResetCalls();
    Result(input);
    const int64_t kernels = emu::NumCalls(emu::CallKind::kExecution);
    EXPECT_GT(kernels, 1);
    EXPECT_EQ(emu::NumCalls(emu::CallKind::kEarly),
              early && emu::DefaultMajor() >= 9 ? kernels - 1 : 0);
  }
}

TEST_F(RecordedStepTest, AnOpThatFailsInTheFirstCallLeavesNothingRecorded) {
  const auto fails = [this] {
    RETURN_IF_ERROR(Ops());
    return absl::AbortedError("planned");
  };
  ExpectError(backend_->RunStep(1, fails), StatusCode::kAborted, {"planned"});
  TestTensor input = Input();
  const std::vector<uint8_t> eager = Result(input);
  EXPECT_EQ(emu::OutstandingObjects().graph_execs, 0);
  EXPECT_EQ(Result(input), eager);
  EXPECT_EQ(num_calls_, 3);
  EXPECT_EQ(Result(input), eager);
  EXPECT_EQ(num_calls_, 3);
}

TEST_F(RecordedStepTest, AnOpThatFailsInARecordingLeavesNothingRecordedAndRunsNothing) {
  TestTensor input = Input();
  const std::vector<uint8_t> eager = Result(input);
  const DeviceTensor wrong = Normal(DType::kF32, {kTokens, kHidden + 1});
  const std::vector<uint8_t> before = ReadBack(x_.view);
  ExpectError(
      backend_->RunStep(
          1,
          [&] {
            RETURN_IF_ERROR(backend_->RmsNorm({normed_.view, {}, norm_.view, 1e-6f, x_.view}));
            return backend_->Linear({normed_.view, weight_.get(), {}, wrong.view});
          }),
      StatusCode::kInvalidArgument, {"Linear", "out"});
  EXPECT_EQ(ReadBack(x_.view), before);
  EXPECT_EQ(emu::OutstandingObjects().graphs, 0);
  EXPECT_EQ(emu::OutstandingObjects().graph_execs, 0);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Result(input), eager);
  EXPECT_EQ(num_calls_, 2);
}

TEST_F(RecordedStepTest, ARecordingThatTheDeviceRefusesCanBeMadeAgain) {
  TestTensor input = Input();
  const std::vector<uint8_t> eager = Result(input);
  struct Fault {
    emu::CallKind kind;
    int64_t n;
  };
  // The start, an op's launch, the end and the making of the graph.
  for (const Fault& fault : {Fault{emu::CallKind::kGraph, 1}, Fault{emu::CallKind::kLaunch, 2},
                             Fault{emu::CallKind::kGraph, 2}, Fault{emu::CallKind::kGraph, 3}}) {
    SCOPED_TRACE(testing::Message() << static_cast<int>(fault.kind) << " " << fault.n);
    emu::ResetCalls();
    emu::FailNth(fault.kind, fault.n, cudaErrorUnknown);
    ExpectError(Run(), StatusCode::kInternal, {"cudaErrorUnknown"});
    emu::ResetCalls();
    EXPECT_EQ(emu::OutstandingObjects().graphs, 0);
    EXPECT_EQ(emu::OutstandingObjects().graph_execs, 0);
  }
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Result(input), eager);
}

TEST_F(RecordedStepTest, ScratchThatWasNotTakenBeforeIsRefusedInARecording) {
  const DeviceTensor q = Normal(DType::kBF16, {1, 2, 32});
  const DeviceTensor cache = Normal(DType::kBF16, {2, 8, 32});
  const DeviceTensor zero = Upload(IntTensor({0}));
  const DeviceTensor cu = Upload(IntTensor({0, 1}));
  const DeviceTensor lens = Upload(IntTensor({1}));
  const DeviceTensor out = Normal(DType::kBF16, {1, 2, 24});
  bool attends = false;
  const auto run = [&] {
    return backend_->RunStep(1, [&]() -> absl::Status {
      if (!attends) return absl::OkStatus();
      return backend_->MlaAttention(
          {q.view, cache.view, zero.view.SplitLast(1), cu.view, lens.view, 1, out.view});
    });
  };
  EXPECT_TRUE(run().ok());
  attends = true;
  ExpectError(run(), StatusCode::kFailedPrecondition, {"recorded", "scratch"});
  EXPECT_TRUE(backend_
                  ->MlaAttention(
                      {q.view, cache.view, zero.view.SplitLast(1), cu.view, lens.view, 1, out.view})
                  .ok());
  const absl::Status status = run();
  EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace jevons
