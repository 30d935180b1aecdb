#include "model/read_ahead.h"

#include <sys/resource.h>

#include <set>

#include "gtest/gtest.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

// Knows what was fetched. Thread-safe.
class FetchedNames : public Checkpoint {
 public:
  absl::StatusOr<TensorView> Find(std::string_view name) const override {
    return absl::NotFoundError(std::string(name));
  }
  bool Has(std::string_view name) const override { return false; }
  std::vector<std::string> Names() const override { return {}; }
  void Release(std::string_view name) const override {}
  void Fetch(std::string_view name) const override {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(names_.emplace(name).second) << name << " was fetched twice";
  }

  std::set<std::string> names() const {
    MutexLock lock(&mutex_);
    return names_;
  }

 private:
  mutable Mutex mutex_;
  mutable std::set<std::string> names_ ABSL_GUARDED_BY(mutex_);
};

using Names = std::set<std::string>;

TEST(ReadAheadTest, FetchesWhatIsWantedAndNothingElse) {
  const FetchedNames checkpoint;
  ReadAhead ahead(checkpoint, {"a", "b", "c", "d", "e", "f"});
  ahead.MoveTo(0, 2);
  WaitFor([&] { return checkpoint.names() == Names{"a", "b"}; });
  ahead.MoveTo(3, 5);
  WaitFor([&] { return checkpoint.names() == Names{"a", "b", "d", "e"}; });
  // Going back changes nothing.
  ahead.MoveTo(0, 5);
  ahead.MoveTo(5, 100);
  WaitFor([&] { return checkpoint.names() == Names{"a", "b", "d", "e", "f"}; });
}

TEST(ReadAheadTest, EndsWithWorkLeftAndWithNone) {
  const FetchedNames checkpoint;
  for (int i = 0; i < 100; ++i) {
    ReadAhead ahead(checkpoint, {std::to_string(i), "x" + std::to_string(i)});
    if (i % 2 == 0) ahead.MoveTo(0, 2);
  }
  ReadAhead empty(checkpoint, {});
  empty.MoveTo(0, 0);
}

int64_t NumFaults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

int64_t FaultsOfReading(const TensorView& tensor) {
  const volatile char* data = tensor.ptr<char>();
  const int64_t before = NumFaults();
  for (int64_t i = 0; i < tensor.num_elements() * DTypeBytes(tensor.dtype); i += 4096) {
    static_cast<void>(data[i]);
  }
  return NumFaults() - before;
}

TEST(CheckpointFetchTest, PagesAreThereAfterwards) {
  const TempFolder folder;
  CheckpointWriter writer;
  writer.AddF32("large", {4096, 1024}, std::vector<float>(4096 * 1024, 1.0f));
  writer.WriteSingle(folder.path());
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto large = (*checkpoint)->Find("large");
  ASSERT_TRUE(large.ok());
  (*checkpoint)->Release("large");
  const int64_t without = FaultsOfReading(*large);
  (*checkpoint)->Release("large");
  (*checkpoint)->Fetch("large");
  const int64_t with = FaultsOfReading(*large);
  EXPECT_LT(with, 4);
  EXPECT_GT(without, with);
  (*checkpoint)->Fetch("of another model");
}

}  // namespace
}  // namespace jevons
