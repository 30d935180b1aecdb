// For programs whose ranks have an emulated device each.
#include "gtest/gtest.h"
#include "tests/cuda_emu/runtime.h"

namespace jevons {
namespace {

class EightDevices : public testing::Environment {
 public:
  void SetUp() override { emu::SetDevice({.count = 8}); }
};
testing::Environment* const kEightDevices = testing::AddGlobalTestEnvironment(new EightDevices);

}  // namespace
}  // namespace jevons
