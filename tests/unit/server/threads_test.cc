#include <atomic>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "server/stream_pump.h"
#include "server/work_thread.h"
#include "tests/support/wait_for.h"

namespace jevons {
namespace {

struct CountingTarget : PumpTarget {
  void Pump() override { ++count; }
  std::atomic<int> count{0};
};

TEST(StreamPumpTest, EveryNoticeIsPumped) {
  StreamPump pump;
  const auto target = std::make_shared<CountingTarget>();
  const std::function<void()> notice = pump.NoticeFor(target);
  for (int i = 0; i < 1000; ++i) notice();
  EXPECT_TRUE(WaitFor([&] { return target->count == 1000; }));
}

TEST(StreamPumpTest, ATargetThatIsGoneIsSkipped) {
  StreamPump pump;
  auto gone = std::make_shared<CountingTarget>();
  const auto alive = std::make_shared<CountingTarget>();
  const std::function<void()> notice_gone = pump.NoticeFor(gone);
  gone.reset();
  notice_gone();
  pump.NoticeFor(alive)();
  EXPECT_TRUE(WaitFor([&] { return alive->count == 1; }));
}

TEST(StreamPumpTest, ANoticeMayOutliveThePump) {
  const auto target = std::make_shared<CountingTarget>();
  std::function<void()> notice;
  {
    StreamPump pump;
    notice = pump.NoticeFor(target);
  }
  notice();
  EXPECT_EQ(target->count, 0);
}

TEST(WorkThreadTest, OneTooManyIsRefusedAndTheOthersRun) {
  std::atomic<int> ran{0};
  absl::Notification started;
  absl::Notification go;
  {
    WorkThread work(2);
    ASSERT_TRUE(work.Post([&] {
                      started.Notify();
                      go.WaitForNotification();
                      ++ran;
                    })
                    .ok());
    started.WaitForNotification();
    EXPECT_TRUE(work.Post([&] { ++ran; }).ok());
    EXPECT_TRUE(work.Post([&] { ++ran; }).ok());
    EXPECT_EQ(work.Post([&] { ++ran; }),
              absl::ResourceExhaustedError("2 large requests wait to be tokenised, the limit is 2; "
                                           "try again later"));
    go.Notify();
  }
  EXPECT_EQ(ran, 3);
}

}  // namespace
}  // namespace jevons
