// Limits that a container has: H6 of the cases from the field.
#include <sched.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <thread>

#include "cpu/cgroup.h"
#include "cpu/usable_cpus.h"
#include "gmock/gmock.h"
#include "tests/e2e/rank_group.h"

namespace jevons {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// A control group below that of this process, for one controller.
class ControlGroup {
 public:
  explicit ControlGroup(const std::string& controller) {
    const std::vector<CgroupFolder> own = CgroupFolders("/proc/self", controller);
    if (own.empty()) return;
    v2_ = own[0].v2;
    folder_ = absl::StrCat(own[0].path, "/jevons_test_", getpid());
    std::error_code ignored;
    made_ = std::filesystem::create_directory(folder_, ignored);
  }
  ~ControlGroup() {
    if (made_) WaitFor([this] { return rmdir(folder_.c_str()) == 0; }, absl::Seconds(5));
  }

  // False where the machine does not permit it.
  bool Limit(const std::string& name_v2, const std::string& name_v1, const std::string& value) {
    const std::string file = folder_ + "/" + (v2_ ? name_v2 : name_v1);
    if (!made_ || !std::filesystem::exists(file)) return false;
    std::ofstream out(file);
    out << value << std::flush;
    return out.good();
  }
  // The program in the group, from its first moment.
  Arguments Inside(const Arguments& argv) const {
    const std::string enter = R"(echo $$ > "$1/cgroup.procs" || exit 99; shift; exec "$@")";
    return Join({"/bin/sh", "-c", enter, "sh", folder_}, argv);
  }

 private:
  std::string folder_;
  bool v2_ = false;
  bool made_ = false;
};

#define SKIP_UNLESS(limited) \
  if (!(limited)) GTEST_SKIP() << "needs to write control groups"

// The number after NAME= in the ready line.
int64_t ReadyNumber(const std::string& ready, const std::string& name) {
  const size_t at = ready.find(" " + name + "=");
  int64_t value = -1;
  if (at == std::string::npos) return value;
  const std::string rest = ready.substr(at + name.size() + 2);
  EXPECT_TRUE(absl::SimpleAtoi(rest.substr(0, rest.find(' ')), &value)) << ready;
  return value;
}

Arguments Serve(const std::string& model, const Arguments& more = {}) {
  return Join(
      {JEVONS_BINARY, "serve", "--model", model, "--listen", "127.0.0.1:0", "--backend", "cpu"},
      more);
}

TEST(H6Limits, ThreadsFollowAQuotaOfCpuTime) {
  const TinyModelFolder model;
  ControlGroup group("cpu");
  SKIP_UNLESS(group.Limit("cpu.max", "cpu.cfs_quota_us", "100000"));
  RankServer server(group.Inside(Serve(model.path())));
  ASSERT_TRUE(server.ok());
  EXPECT_EQ(ReadyNumber(server.ready(), "threads"), 1);
}

TEST(H6Limits, ThreadsFollowTheSetOfCpus) {
  const TinyModelFolder model;
  std::unique_ptr<RankServer> server;
  // A process inherits the set of the thread that starts it.
  std::thread([&] {
    cpu_set_t set;
    CPU_ZERO(&set);
    ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
    int first = 0;
    while (!CPU_ISSET(first, &set)) ++first;
    CPU_ZERO(&set);
    CPU_SET(first, &set);
    ASSERT_EQ(sched_setaffinity(0, sizeof(set), &set), 0);
    server = std::make_unique<RankServer>(Serve(model.path()));
  }).join();
  ASSERT_TRUE(server != nullptr && server->ok());
  EXPECT_EQ(ReadyNumber(server->ready(), "threads"), 1);
}

// 420 MB of weights that are all zero: a file of holes.
class LargeModelFolder {
 public:
  LargeModelFolder() {
    const nlohmann::json json = TinyConfigJson("deepseek_v3", {{"hidden_size", 1024},
                                                               {"moe_intermediate_size", 1024},
                                                               {"n_routed_experts", 64},
                                                               {"max_position_embeddings", 60000}});
    const auto config = ParseModelConfig(json.dump(), "");
    EXPECT_TRUE(config.ok()) << config.status();
    WriteFile(folder_.Path("config.json"), json.dump());
    nlohmann::json header;
    for (const TensorSpec& spec : ExpectedTensors(*config)) {
      const int64_t begin = bytes_;
      int64_t count = 1;
      for (const int64_t dim : spec.shape) count *= dim;
      bytes_ += 2 * count;
      header[spec.name] = {
          {"dtype", "BF16"}, {"shape", spec.shape}, {"data_offsets", {begin, bytes_}}};
    }
    const std::string bytes = SafetensorsBytes(header.dump());
    WriteFile(folder_.Path("model.safetensors"), bytes);
    std::filesystem::resize_file(folder_.Path("model.safetensors"), bytes.size() + bytes_);
  }
  const std::string& path() const { return folder_.path(); }
  int64_t bytes() const { return bytes_; }

 private:
  TempFolder folder_;
  int64_t bytes_ = 0;
};

TEST(H6Limits, WeightsAboveTheLimitOfMemoryAreRefusedWithTheNumbers) {
  const LargeModelFolder model;
  ControlGroup group("memory");
  const int64_t limit = model.bytes() * 7 / 10;
  SKIP_UNLESS(group.Limit("memory.max", "memory.limit_in_bytes", absl::StrCat(limit)));
  const ProcessResult result =
      RunProcess(group.Inside(Serve(model.path(), {"--threads", "1"})), {.limit = kLongest});
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_THAT(result.err,
              AllOf(HasSubstr("the weights take at least"), HasSubstr("of memory are available")));
}

// Pages of the file that the kernel keeps count as free, and the cache for tokens gets a part of what is
// left.
TEST(H6Limits, ATenthMoreThanTheWeightsIsEnoughAndTheCacheFitsIntoIt) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer takes memory of its own";
#endif
  const LargeModelFolder model;
  ControlGroup group("memory");
  const int64_t limit = model.bytes() * 11 / 10;
  SKIP_UNLESS(group.Limit("memory.max", "memory.limit_in_bytes", absl::StrCat(limit)));
  RankServer server(group.Inside(Serve(model.path(), {"--threads", "1"})));
  ASSERT_TRUE(server.ok());
  // Without a limit it would be 32 whole contexts.
  EXPECT_LT(ReadyNumber(server.ready(), "kv_cache_tokens"), 32 * 60000);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(Generate(server.client(), TinyRequest(i, 20)).status.ok());
  }
  EXPECT_LT(ProcStatus(server.process().pid(), "VmHWM:") * 1024, limit + (64 << 20));
  server.process().Signal(SIGTERM);
  EXPECT_EQ(server.process().Wait(kLongest), 0);
}

}  // namespace
}  // namespace jevons
