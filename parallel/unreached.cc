#include "parallel/unreached.h"

#include <string>

#include "absl/strings/cord.h"

namespace jevons {
namespace {

constexpr char kUnreached[] = "jevons/unreached_ranks";

}  // namespace

absl::Status WithUnreached(absl::Status error, std::span<const int32_t> ranks) {
  if (ranks.empty()) return error;
  const std::string bytes(reinterpret_cast<const char*>(ranks.data()), ranks.size_bytes());
  error.SetPayload(kUnreached, absl::Cord(bytes));
  return error;
}

std::vector<int32_t> UnreachedRanks(const absl::Status& error) {
  const auto payload = error.GetPayload(kUnreached);
  if (!payload) return {};
  const std::string bytes(*payload);
  std::vector<int32_t> out(bytes.size() / sizeof(int32_t));
  bytes.copy(reinterpret_cast<char*>(out.data()), bytes.size());
  return out;
}

}  // namespace jevons
