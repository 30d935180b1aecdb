#include "cpu/cgroup.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string_view>

namespace jevons {
namespace {

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) out.push_back(part);
  return out;
}

bool Contains(const std::vector<std::string>& list, std::string_view wanted) {
  return std::find(list.begin(), list.end(), wanted) != list.end();
}

struct CgroupMount {
  bool v2 = false;
  std::string root;   // the part of the hierarchy that is mounted
  std::string point;  // where
};

// A line of mountinfo: id parent device root point options [more] - type source super_options
bool ParseMount(const std::string& line, const std::string& controller, CgroupMount* out) {
  const std::vector<std::string> fields = Split(line, ' ');
  const auto dash = std::find(fields.begin(), fields.end(), "-");
  if (fields.size() < 6 || fields.end() - dash < 4) return false;
  out->root = fields[3];
  out->point = fields[4];
  out->v2 = dash[1] == "cgroup2";
  return out->v2 || (dash[1] == "cgroup" && Contains(Split(dash[3], ','), controller));
}

// The process's folder below the mount; empty for the mount itself. A path outside of the mounted
// part belongs to another namespace: then the mount is all that can be seen.
std::string PathBelow(const CgroupMount& mount, const std::string& path) {
  if (mount.root == "/") return path == "/" ? "" : path;
  const size_t length = mount.root.size();
  const bool inside =
      path.compare(0, length, mount.root) == 0 && (path.size() == length || path[length] == '/');
  return inside ? path.substr(length) : "";
}

// A line of cgroup: id:controllers:path, the controllers of v2 being empty. `controller` is empty for
// v2.
bool ParsePath(const std::string& line, const std::string& controller, std::string* path) {
  const size_t first = line.find(':');
  const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
  if (second == std::string::npos) return false;
  const std::string controllers = line.substr(first + 1, second - first - 1);
  *path = line.substr(second + 1);
  return controller.empty() ? controllers.empty() : Contains(Split(controllers, ','), controller);
}

std::string ProcessPath(const std::string& proc_self, const std::string& controller) {
  std::ifstream in(proc_self + "/cgroup");
  for (std::string line, path; std::getline(in, line);) {
    if (ParsePath(line, controller, &path)) return path;
  }
  return "/";
}

}  // namespace

std::vector<CgroupFolder> CgroupFolders(const std::string& proc_self,
                                        const std::string& controller) {
  std::vector<CgroupFolder> out;
  std::ifstream in(proc_self + "/mountinfo");
  for (std::string line; std::getline(in, line);) {
    CgroupMount mount;
    if (!ParseMount(line, controller, &mount)) continue;
    std::string below = PathBelow(mount, ProcessPath(proc_self, mount.v2 ? "" : controller));
    while (true) {
      out.push_back({mount.point + below, mount.v2});
      if (below.empty()) break;
      below.resize(std::min(below.rfind('/'), below.size() - 1));
    }
  }
  return out;
}

}  // namespace jevons
