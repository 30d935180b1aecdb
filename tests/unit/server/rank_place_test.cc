#include "server/rank_place.h"

#include "gmock/gmock.h"

namespace jevons {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

RankPlace Place(const RankPlaceFlags& flags, const Variables& environment) {
  const auto place = FindRankPlace(flags, environment);
  EXPECT_TRUE(place.ok()) << place.status();
  return place.value_or(RankPlace());
}

std::string ErrorOf(const RankPlaceFlags& flags, const Variables& environment) {
  const auto place = FindRankPlace(flags, environment);
  EXPECT_EQ(place.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(place.status().message());
}

TEST(RankPlaceTest, WithoutARankThisProcessStartsTheOthers) {
  const RankPlace place = Place({.ranks = 4}, {});
  EXPECT_EQ(place.rank, 0);
  EXPECT_EQ(place.world_size, 4);
  EXPECT_EQ(place.leader, "");
  EXPECT_EQ(Place({}, {}).world_size, 1);
}

TEST(RankPlaceTest, EachLauncherIsUnderstood) {
  struct Names {
    std::string rank, size, local_rank;
  };
  const Names launchers[] = {
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
      {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
      {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"},
      {"RANK", "WORLD_SIZE", "LOCAL_RANK"},
      {"LWS_WORKER_INDEX", "LWS_GROUP_SIZE", ""}};
  for (const auto& [rank, size, local_rank] : launchers) {
    Variables variables = {{rank, "2"}, {size, "3"}};
    EXPECT_EQ(Place({.leader = "a:1"}, variables).local_rank, 0);
    if (!local_rank.empty()) variables[local_rank] = "1";
    const RankPlace place = Place({.leader = "a:1"}, variables);
    EXPECT_EQ(place.rank, 2) << rank;
    EXPECT_EQ(place.world_size, 3) << size;
    EXPECT_EQ(place.leader, "a:1");
    EXPECT_EQ(place.local_rank, local_rank.empty() ? 0 : 1) << local_rank;
    for (const auto& [name, value] : variables) {
      EXPECT_THAT(LauncherVariables(), testing::Contains(name));
    }
  }
  EXPECT_THAT(
      ErrorOf({.leader = "a:1"}, {{"RANK", "2"}, {"WORLD_SIZE", "3"}, {"LOCAL_RANK", "first"}}),
      AllOf(HasSubstr("LOCAL_RANK"), HasSubstr("first")));
}

TEST(RankPlaceTest, LeaderWorkerSetNamesTheLeader) {
  const Variables lws = {
      {"LWS_WORKER_INDEX", "1"}, {"LWS_GROUP_SIZE", "2"}, {"LWS_LEADER_ADDRESS", "j-0.j"}};
  EXPECT_EQ(Place({}, lws).leader, "j-0.j:50052");
  EXPECT_EQ(Place({.leader = "j-0.j:7"}, lws).leader, "j-0.j:7");
  EXPECT_THAT(ErrorOf({.leader = "k:7"}, lws),
              AllOf(HasSubstr("--leader k:7"), HasSubstr("LWS_LEADER_ADDRESS=j-0.j")));
}

TEST(RankPlaceTest, AContradictionNamesFlagAndVariable) {
  const Variables mpi = {{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "4"}};
  EXPECT_THAT(ErrorOf({.rank = 2, .leader = "a:1"}, mpi),
              AllOf(HasSubstr("--rank 2"), HasSubstr("OMPI_COMM_WORLD_RANK=1")));
  EXPECT_THAT(ErrorOf({.ranks = 2, .leader = "a:1"}, mpi),
              AllOf(HasSubstr("--ranks 2"), HasSubstr("OMPI_COMM_WORLD_SIZE=4")));
  EXPECT_EQ(Place({.ranks = 4, .rank = 1, .leader = "a:1"}, mpi).rank, 1);
}

TEST(RankPlaceTest, ALaunchersGroupOfOneSaysNothing) {
  const RankPlace place = Place({.ranks = 2}, {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}});
  EXPECT_EQ(place.world_size, 2);
  EXPECT_EQ(place.leader, "");
}

TEST(RankPlaceTest, WhatIsMissingOrOutOfRangeIsNamed) {
  EXPECT_THAT(ErrorOf({.ranks = 2, .rank = 1}, {}), HasSubstr("needs --leader HOST:PORT"));
  EXPECT_THAT(ErrorOf({.rank = 1, .leader = "a:1"}, {}), HasSubstr("needs --ranks"));
  EXPECT_THAT(ErrorOf({.ranks = 2, .leader = "a:1"}, {}), HasSubstr("needs --rank"));
  EXPECT_THAT(ErrorOf({.ranks = 2, .rank = 2, .leader = "a:1"}, {}),
              HasSubstr("--rank must be in [0, 1], given 2"));
  EXPECT_THAT(ErrorOf({}, {{"RANK", "x"}, {"WORLD_SIZE", "2"}}),
              AllOf(HasSubstr("RANK"), HasSubstr("x")));
}

}  // namespace
}  // namespace jevons
