// jevons generate with ranks on emulated GPUs: the bytes of one rank, and what is refused.
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/parallel/free_address.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/process.h"

namespace jevons {
namespace {

using testing::HasSubstr;

class GenerateRanksTest : public testing::Test {
 protected:
  GenerateRanksTest() { WriteRandomModel(model_.path(), TinyConfigJson("deepseek_v3"), 5); }

  ProcessResult Run(const std::vector<std::string>& flags, int num_devices) {
    std::vector<std::string> argv = {JEVONS_BINARY, "generate",      "--model",     model_.path(),
                                     "--json",      "--seed",        "7",           "--logprobs",
                                     "3",           "--prompt-ids",  "5,9,33,2,17", "--max-tokens",
                                     "20",          "--temperature", "1",           "--ignore-eos"};
    argv.insert(argv.end(), flags.begin(), flags.end());
    return RunProcess(argv, {.environment = {"JEVONS_EMU_MAJOR=8",
                                             absl::StrCat("JEVONS_EMU_DEVICES=", num_devices)}});
  }

  TempFolder model_;
};

TEST_F(GenerateRanksTest, OverNcclGivesTheBytesOfOneRank) {
  const ProcessResult want = Run({"--backend", "cuda"}, 1);
  ASSERT_EQ(want.exit_code, 0) << want.err;
  ASSERT_THAT(want.out, HasSubstr("output_ids"));
  const ProcessResult got = Run(
      {"--backend", "cuda", "--ranks", "2", "--transport", "nccl", "--exchange-by", "kernels"}, 2);
  EXPECT_EQ(got.exit_code, 0) << got.err;
  EXPECT_EQ(got.out, want.out);
}

TEST_F(GenerateRanksTest, WhatCannotBeIsRefused) {
  const auto error = [&](const std::vector<std::string>& flags) {
    const ProcessResult result = Run(flags, 1);
    EXPECT_NE(result.exit_code, 0);
    return result.err;
  };
  EXPECT_THAT(error({"--ranks", "2", "--transport", "nccl"}),
              HasSubstr("2 ranks over nccl need a GPU each, found 1"));
  EXPECT_THAT(error({"--backend", "cpu", "--ranks", "2", "--transport", "nccl"}),
              HasSubstr("transport nccl joins GPUs, given backend cpu"));
  EXPECT_THAT(error({"--ranks", "2", "--exchange-by", "kernels"}),
              HasSubstr("exchange-by kernels is for ranks on GPUs"));
  EXPECT_THAT(error({"--backend", "cuda", "--ranks", "2"}),
              HasSubstr("need transport nccl or processes, given threads"));
  EXPECT_THAT(error({"--backend", "cuda", "--ranks", "2", "--transport", "processes"}),
              HasSubstr("2 ranks over nccl need a GPU each, found 1"));
  EXPECT_THAT(error({"--backend", "cuda", "--device", "3"}),
              HasSubstr("CUDA device 3 is not there: 1 found"));
  EXPECT_THAT(error({"--device", "0"}), HasSubstr("--device 0 needs --backend cuda"));
  EXPECT_THAT(
      error({"--backend", "cuda", "--device", "0", "--ranks", "2", "--transport", "processes"}),
      HasSubstr("--device 0 is of one process, and this one starts 2 ranks"));
  EXPECT_THAT(error({"--ranks", "2", "--transport", "nccl", "--rank", "1"}),
              HasSubstr("--rank and --leader need --transport processes"));
}

// They hear of it before they exchange anything.
TEST_F(GenerateRanksTest, RanksOfUnlikeBackendsRefuseEachOtherByName) {
  const std::string leader = FreeAddress();
  const auto run = [&](const char* rank, const char* backend) {
    return Run({"--transport", "processes", "--ranks", "2", "--rank", rank, "--leader", leader,
                "--backend", backend, "--join-seconds", "3"},
               1);
  };
  ProcessResult first;
  std::thread leads([&] { first = run("0", "cuda"); });
  const ProcessResult second = run("1", "cpu");
  leads.join();
  EXPECT_NE(first.exit_code, 0);
  EXPECT_NE(second.exit_code, 0);
  EXPECT_THAT(second.err,
              HasSubstr("rank 1 does not fit: the backend is cuda at rank 0 and cpu there"));
}

}  // namespace
}  // namespace jevons
