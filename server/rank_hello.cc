#include "server/rank_hello.h"

#include "absl/strings/str_cat.h"

namespace jevons {

absl::Status CheckHello(const wire::Hello& hello, const RankLeaderOptions& options) {
  const auto differ = [&](const std::string& name, const std::string& own,
                          const std::string& other) {
    return absl::FailedPreconditionError(absl::StrCat("rank ", hello.rank(),
                                                      " does not fit: ", name, " is ", own,
                                                      " at rank 0 and ", other, " there"));
  };
  if (hello.version() != options.version) {
    return differ("the version", options.version, hello.version());
  }
  if (hello.world_size() != options.world_size) {
    return differ("the world size", absl::StrCat(options.world_size),
                  absl::StrCat(hello.world_size()));
  }
  if (hello.rank() < 1 || hello.rank() >= options.world_size) {
    return absl::FailedPreconditionError(
        absl::StrCat("rank must be in [1, ", options.world_size - 1, "], given ", hello.rank()));
  }
  for (size_t i = 0; i < options.facts.size(); ++i) {
    const GroupFact& own = options.facts[i];
    const bool there = i < static_cast<size_t>(hello.facts_size());
    if (there && hello.facts(i).name() == own.name && hello.facts(i).value() == own.value) continue;
    return differ(own.name, own.value, there ? hello.facts(i).value() : "missing");
  }
  return absl::OkStatus();
}

}  // namespace jevons
