// Other processes, from /proc.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace jevons {

// Fields of /proc/PID/stat from the state on (field 3 of its man page); empty if it is gone.
inline std::vector<std::string> ProcStat(pid_t pid) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/stat"));
  std::stringstream text;
  text << in.rdbuf();
  const std::string all = text.str();
  const size_t name_end = all.rfind(')');
  if (name_end == std::string::npos) return {};
  std::istringstream rest(all.substr(name_end + 1));
  std::vector<std::string> fields;
  for (std::string field; rest >> field;) fields.push_back(field);
  return fields;
}

// Neither gone nor a zombie.
inline bool ProcRuns(pid_t pid) {
  const std::vector<std::string> fields = ProcStat(pid);
  return !fields.empty() && fields[0] != "Z";
}

// The number after `key` of /proc/PID/status, e.g. "VmHWM:" in KiB; -1 if it is not there.
inline int64_t ProcStatus(pid_t pid, const std::string& key) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/status"));
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t value = -1;
    if (words >> name >> value && name == key) return value;
  }
  return -1;
}

// Time on a CPU of its threads that run.
inline double ProcCpuSeconds(pid_t pid) {
  double nanoseconds = 0;
  std::error_code ignored;
  const std::string tasks = absl::StrCat("/proc/", pid, "/task");
  for (const auto& task : std::filesystem::directory_iterator(tasks, ignored)) {
    std::ifstream in(task.path() / "schedstat");
    double on_cpu = 0;
    if (in >> on_cpu) nanoseconds += on_cpu;
  }
  return nanoseconds * 1e-9;
}

// Children that were started with --rank, by rank.
inline std::map<int, pid_t> RankChildrenOf(pid_t parent) {
  std::map<int, pid_t> out;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    int32_t pid = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &pid)) continue;
    const std::vector<std::string> fields = ProcStat(pid);
    if (fields.size() < 2 || fields[1] != absl::StrCat(parent)) continue;
    std::ifstream in(absl::StrCat("/proc/", pid, "/cmdline"));
    std::vector<std::string> arguments;
    for (std::string argument; std::getline(in, argument, '\0');) arguments.push_back(argument);
    for (size_t i = 0; i + 1 < arguments.size(); ++i) {
      int32_t rank = -1;
      if (arguments[i] == "--rank" && absl::SimpleAtoi(arguments[i + 1], &rank)) out[rank] = pid;
    }
  }
  return out;
}

}  // namespace jevons
