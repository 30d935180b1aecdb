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
    // Seconds of work, minutes with a sanitizer on a machine that does other things too.
    return RunProcess(argv, {.environment = {"JEVONS_EMU_MAJOR=8",
                                             absl::StrCat("JEVONS_EMU_DEVICES=", num_devices)},
                             .limit = absl::Minutes(20)});
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
  const auto error = [&](const std::vector<std::string>& flags, int num_devices = 1) {
    const ProcessResult result = Run(flags, num_devices);
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
  EXPECT_THAT(error({"--backend", "cpu", "--cublaslt-rows", "8"}),
              HasSubstr("cublaslt-rows 8 needs backend cuda, given cpu"));
  EXPECT_THAT(error({"--cublaslt-rows", "8"}, 0),
              HasSubstr("cublaslt-rows 8 needs backend cuda, given auto, which is cpu here"));
  EXPECT_THAT(error({"--backend", "cuda", "--cublaslt-rows", "65537"}),
              HasSubstr("must be in [0, 65536], given 65537"));
}

// They hear of it before they exchange anything.
TEST_F(GenerateRanksTest, RanksOfUnlikeBackendsRefuseEachOtherByName) {
  struct Pair {
    std::vector<std::string> first, second;
    std::string text;
  };
  const Pair pairs[] = {
      {{"cuda"}, {"cpu"}, "the backend is cuda at rank 0 and cpu there"},
      {{"cuda", "--cublaslt-rows", "8"}, {"cuda"}, "--cublaslt-rows is 8 at rank 0 and 0 there"},
      {{"cpu", "--activation-precision", "fp8"},
       {"cpu"},
       "--activation-precision is fp8 at rank 0 and exact there"}};
  for (const Pair& pair : pairs) {
    const std::string leader = FreeAddress();
    const auto run = [&](const char* rank, const std::vector<std::string>& backend) {
      std::vector<std::string> flags = {"--transport",    "processes", "--ranks",  "2",
                                        "--rank",         rank,        "--leader", leader,
                                        "--join-seconds", "3",         "--backend"};
      flags.insert(flags.end(), backend.begin(), backend.end());
      return Run(flags, 1);
    };
    ProcessResult first;
    std::thread leads([&] { first = run("0", pair.first); });
    const ProcessResult second = run("1", pair.second);
    leads.join();
    EXPECT_NE(first.exit_code, 0);
    EXPECT_NE(second.exit_code, 0);
    EXPECT_THAT(second.err, HasSubstr("rank 1 does not fit: " + pair.text));
  }
}

}  // namespace
}  // namespace jevons
