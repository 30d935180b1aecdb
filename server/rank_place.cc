#include "server/rank_place.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/error_text.h"
#include "server/listen.h"

namespace jevons {
namespace {

struct Launcher {
  const char* rank;
  const char* world_size;
  const char* local_rank;  // null: each rank has a host for itself
  const char* leader;      // null: it names none
};

constexpr Launcher kLaunchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", nullptr},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", nullptr},
    {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nullptr},
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", nullptr},
    {"LWS_WORKER_INDEX", "LWS_GROUP_SIZE", nullptr, "LWS_LEADER_ADDRESS"},
};

using Variables = std::map<std::string, std::string>;

absl::StatusOr<int32_t> ReadNumber(const Variables& environment, const char* name) {
  const std::string& text = environment.at(name);
  int32_t value = -1;
  if (absl::SimpleAtoi(text, &value) && value >= 0) return value;
  return absl::InvalidArgumentError(
      absl::StrCat(name, " must be a number of at least 0, given ", QuoteValue(text)));
}

absl::Status Contradiction(const char* flag, const std::string& given, const char* name,
                           const std::string& found) {
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " ", given, " contradicts ", name, "=", found, " of the environment"));
}

// Fills what the flags leave open.
absl::Status AddLauncher(const Launcher& launcher, const Variables& environment,
                         RankPlaceFlags& flags) {
  ASSIGN_OR_RETURN(const int32_t rank, ReadNumber(environment, launcher.rank));
  ASSIGN_OR_RETURN(const int32_t world_size, ReadNumber(environment, launcher.world_size));
  if (world_size == 1) return absl::OkStatus();
  if (flags.rank.value_or(rank) != rank) {
    return Contradiction("--rank", absl::StrCat(*flags.rank), launcher.rank, absl::StrCat(rank));
  }
  if (flags.ranks.value_or(world_size) != world_size) {
    return Contradiction("--ranks", absl::StrCat(*flags.ranks), launcher.world_size,
                         absl::StrCat(world_size));
  }
  flags.rank = rank;
  flags.ranks = world_size;
  if (launcher.leader == nullptr || !environment.contains(launcher.leader)) return absl::OkStatus();
  const std::string& host = environment.at(launcher.leader);
  if (flags.leader.empty()) {
    flags.leader = absl::StrCat(host, ":", kLeaderPort);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const HostPort given, ParseAddress("--leader", flags.leader));
  if (given.host == host) return absl::OkStatus();
  return Contradiction("--leader", flags.leader, launcher.leader, host);
}

}  // namespace

const std::vector<std::string>& LauncherVariables() {
  static const auto* names = [] {
    auto* out = new std::vector<std::string>;
    for (const Launcher& launcher : kLaunchers) {
      for (const char* name :
           {launcher.rank, launcher.world_size, launcher.local_rank, launcher.leader}) {
        if (name != nullptr) out->push_back(name);
      }
    }
    return out;
  }();
  return *names;
}

absl::StatusOr<RankPlace> FindRankPlace(const RankPlaceFlags& given, const Variables& environment) {
  RankPlaceFlags flags = given;
  int32_t local_rank = 0;
  for (const Launcher& launcher : kLaunchers) {
    if (!environment.contains(launcher.rank) || !environment.contains(launcher.world_size))
      continue;
    RETURN_IF_ERROR(AddLauncher(launcher, environment, flags));
    if (launcher.local_rank != nullptr && environment.contains(launcher.local_rank)) {
      ASSIGN_OR_RETURN(local_rank, ReadNumber(environment, launcher.local_rank));
    }
    break;
  }
  RankPlace out{.rank = flags.rank.value_or(0),
                .world_size = flags.ranks.value_or(1),
                .leader = flags.leader,
                .local_rank = local_rank};
  if (!flags.rank) {
    if (flags.leader.empty()) return out;
    return absl::InvalidArgumentError(
        absl::StrCat("--leader ", flags.leader, " needs --rank, or the environment of a launcher"));
  }
  if (!flags.ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("--rank ", out.rank, " needs --ranks, the number of all ranks"));
  }
  if (out.rank < 0 || out.rank >= out.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("--rank must be in [0, ", out.world_size - 1, "], given ", out.rank));
  }
  if (out.leader.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rank ", out.rank, " needs --leader HOST:PORT, where rank 0 listens for the other ranks"));
  }
  return out;
}

}  // namespace jevons
