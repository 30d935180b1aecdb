// The two CPU backends: the fast one that serves, and the plain twins that define what is right.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "ops/backend.h"

namespace jevons {

// Instruction sets of the one binary. kBest takes the highest that the machine has.
enum class CpuTarget { kBest, kBaseline, kAvx2, kAvx512 };

struct CpuBackendOptions {
  int32_t num_threads = 0;  // 0: the CPUs that this process may use (affinity and cgroup quota)
  CpuTarget target = CpuTarget::kBest;
};

// FAILED_PRECONDITION if the machine lacks the target. The target is one for the whole process: the
// last call decides.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options);

// Plain loops and fp64 sums, written from the contracts in ops/ alone. Slow; for tests.
std::unique_ptr<Backend> CreateReferenceBackend();

// CPUs that this process may use: affinity and the smallest cgroup quota on its path, rounded up;
// at least 1.
int32_t UsableCpus();

// "baseline", "avx2", "avx512"; INVALID_ARGUMENT for others. The empty string is kBest.
absl::StatusOr<CpuTarget> ParseCpuTarget(std::string_view name);

// The process computes with the target of this name from now on, as with a backend of it. Returns what
// that is where the name is empty.
absl::StatusOr<std::string> UseCpuTarget(std::string_view name);

}  // namespace jevons
