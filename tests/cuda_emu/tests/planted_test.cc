// Runs tests/planted.cc under AddressSanitizer and ThreadSanitizer: a kernel with a bug must end in
// a report that names its line, one without a bug in none.
#include <gmock/gmock.h>
#include <sys/wait.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace {

struct Outcome {
  int exit_code = -1;
  std::string output;
};

Outcome RunPlanted(const std::string& program, const std::string& kernel) {
  // The suite's own options for the sanitizers are not for this program.
  const std::string command = "env -u ASAN_OPTIONS -u LSAN_OPTIONS TSAN_OPTIONS=halt_on_error=1 '" +
                              program + "' " + kernel + " 2>&1";
  Outcome outcome;
  FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return outcome;
  char buffer[4096];
  while (const size_t num = fread(buffer, 1, sizeof(buffer), pipe)) {
    outcome.output.append(buffer, num);
  }
  const int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  return outcome;
}

// "planted.cc:<line>" of each line that ends in a comment with the kernel's name.
std::vector<std::string> LinesOf(const std::string& kernel) {
  std::ifstream source(JEVONS_SOURCE_DIR "/tests/cuda_emu/tests/planted.cc");
  const std::string mark = "// " + kernel;
  std::vector<std::string> lines;
  std::string text;
  for (int line = 1; std::getline(source, text); ++line) {
    if (text.size() < mark.size() ||
        text.compare(text.size() - mark.size(), mark.size(), mark) != 0) {
      continue;
    }
    lines.push_back("planted.cc:" + std::to_string(line));
  }
  return lines;
}

void ExpectReport(const std::string& program, const std::string& kernel, const std::string& kind) {
  SCOPED_TRACE(kernel);
  const Outcome outcome = RunPlanted(program, kernel);
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_THAT(outcome.output, ::testing::HasSubstr(kind));
  const std::vector<std::string> lines = LinesOf(kernel);
  EXPECT_FALSE(lines.empty());
  for (const std::string& line : lines) {
    EXPECT_THAT(outcome.output, ::testing::HasSubstr(line));
  }
}

void ExpectNoReport(const std::string& program, const std::string& kernel) {
  SCOPED_TRACE(kernel);
  const Outcome outcome = RunPlanted(program, kernel);
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.output, "ended\n");
}

// Empty where the compiler lacks the sanitizer.
const std::string kAsan = JEVONS_PLANTED_ASAN;
const std::string kTsan = JEVONS_PLANTED_TSAN;

TEST(PlantedAsan, KernelsWithoutBugsGiveNoReport) {
  if (kAsan.empty()) GTEST_SKIP() << "the compiler has no AddressSanitizer";
  ExpectNoReport(kAsan, "Good");
  ExpectNoReport(kAsan, "GoodLastBlock");
  ExpectNoReport(kAsan, "GoodPipeline");
}

TEST(PlantedAsan, ReportsNameTheLine) {
  if (kAsan.empty()) GTEST_SKIP() << "the compiler has no AddressSanitizer";
  ExpectReport(kAsan, "ReadPastABuffer", "AddressSanitizer");
  ExpectReport(kAsan, "WritePastSharedMemory", "AddressSanitizer");
}

TEST(PlantedTsan, KernelsWithoutBugsGiveNoReport) {
  if (kTsan.empty()) GTEST_SKIP() << "the compiler has no ThreadSanitizer";
  ExpectNoReport(kTsan, "Good");
  ExpectNoReport(kTsan, "GoodLastBlock");
  ExpectNoReport(kTsan, "GoodPipeline");
  ExpectNoReport(kTsan, "GoodEarly");
}

TEST(PlantedTsan, ReportsNameTheLines) {
  if (kTsan.empty()) GTEST_SKIP() << "the compiler has no ThreadSanitizer";
  for (const char* const kernel :
       {"MissingSyncThreads", "MissingSecondSyncThreads", "MissingSyncWarp", "RaceOfBlocks",
        "WaitAfterTheBarrier", "MissingFullWait", "MissingWgmmaWait", "ReadBeforeTheWait"}) {
    ExpectReport(kTsan, kernel, "ThreadSanitizer: data race");
  }
}

}  // namespace
