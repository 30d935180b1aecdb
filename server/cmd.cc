#include "server/cmd.h"

#include <cstdio>

namespace jevons {

void AddBackend(CLI::App& cmd, EngineOptions& engine) {
  const auto set = [&engine](const std::string& name) {
    engine.backend = name == "cpu"    ? BackendKind::kCpu
                     : name == "cuda" ? BackendKind::kCuda
                                      : BackendKind::kAuto;
  };
  cmd.add_option_function<std::string>("--backend", set,
                                       "Where to compute; auto: cuda where there is a device, else "
                                       "cpu; for ranks cpu, but over nccl cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->default_str("auto");
}

void AddKvCacheDType(CLI::App& cmd, EngineOptions& engine) {
  const auto set = [&engine](const std::string& name) {
    for (KvCacheType type : {KvCacheType::kAuto, KvCacheType::kBf16, KvCacheType::kFp8}) {
      if (KvCacheTypeName(type) == name) engine.kv_cache = type;
    }
  };
  cmd.add_option_function<std::string>("--kv-cache-dtype", set,
                                       "Elements of the KV cache; auto: f32 on the CPU, bf16 on a "
                                       "GPU; fp8 holds 1.75 times as many tokens as bf16")
      ->check(CLI::IsMember({"auto", "bf16", "fp8"}))
      ->default_str("auto");
}

void AddActivationPrecision(CLI::App& cmd, EngineOptions& engine) {
  const auto set = [&engine](const std::string& name) {
    engine.activation_precision =
        name == "fp8" ? ActivationPrecision::kFp8 : ActivationPrecision::kExact;
  };
  cmd.add_option_function<std::string>(
         "--activation-precision", set,
         "What products of FP8 weights read. exact: activations as they are; fp8: rounded to FP8 "
         "with a scale for each 128 values, which an H100 multiplies at twice the rate of bf16. "
         "The tokens are those of any number of sequences and ranks, but not those of exact")
      ->check(CLI::IsMember({"exact", "fp8"}))
      ->default_str("exact");
}

void AddCublasLtRows(CLI::App& cmd, EngineOptions& engine) {
  cmd.add_option("--cublaslt-rows", engine.cublaslt_rows,
                 "With --backend cuda: dense products of steps with at least so many tokens by "
                 "cuBLASLt, where the weights are bf16; 0: none. It gives up that the same request "
                 "gives the same tokens: they may then depend on what else is in the step")
      ->check(InRange<int64_t>(0, 65536))
      ->capture_default_str();
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return kExitError;
}

int FailUsage(const std::string& text) {
  std::fprintf(stderr, "error: %s\nRun with --help for more information.\n", text.c_str());
  return kExitUsage;
}

}  // namespace jevons
