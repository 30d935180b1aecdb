#include "cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace jevons {
namespace {

TEST(ThreadPoolTest, EveryTaskRunsOnceOnAThreadOfThePool) {
  for (int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (int64_t num_tasks : {0, 1, 2, 3, 7, 8, 9, 1000}) {
      std::vector<std::atomic<int>> runs(num_tasks);
      pool.ParallelFor(num_tasks, [&](int64_t task, int thread) {
        EXPECT_GE(thread, 0);
        EXPECT_LT(thread, num_threads);
        runs[task].fetch_add(1);
      });
      for (const std::atomic<int>& count : runs) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPoolTest, WritesOfTasksAreSeenAfterTheLoop) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64, 0);
  for (int64_t loop = 1; loop <= 3000; ++loop) {
    pool.ParallelFor(64, [&](int64_t task, int) { values[task] += loop; });
    ASSERT_EQ(values[loop % 64], loop * (loop + 1) / 2);
  }
  for (int64_t value : values) EXPECT_EQ(value, int64_t{3000} * 3001 / 2);
}

TEST(ThreadPoolTest, ThreadRunsOneTaskAtATime) {
  ThreadPool pool(3);
  std::vector<int> busy(3, 0);
  std::vector<int64_t> last(3, -1);
  pool.ParallelFor(5000, [&](int64_t task, int thread) {
    EXPECT_EQ(busy[thread]++, 0);
    EXPECT_GT(task, last[thread]);
    last[thread] = task;
    --busy[thread];
  });
}

TEST(ThreadPoolTest, OneThreadRunsOnTheCallerInOrder) {
  ThreadPool pool(1);
  std::vector<int64_t> order;
  const std::thread::id caller = std::this_thread::get_id();
  pool.ParallelFor(5, [&](int64_t task, int) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    order.push_back(task);
  });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

TEST(ThreadPoolTest, OneTaskRunsOnTheCaller) {
  ThreadPool pool(4);
  std::thread::id runner;
  pool.ParallelFor(1, [&](int64_t, int) { runner = std::this_thread::get_id(); });
  EXPECT_EQ(runner, std::this_thread::get_id());
}

TEST(ThreadPoolTest, TasksAreSharedWhenWorkersHaveSlept) {
  ThreadPool pool(2);
  for (int loop = 0; loop < 5; ++loop) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> inside{0};
    // Neither of the two ends before both have begun; so two threads must come.
    pool.ParallelFor(2, [&](int64_t, int) {
      inside.fetch_add(1);
      while (inside.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(inside.load(), 2);
  }
}

TEST(ThreadPoolTest, PoolsWithoutWorkEnd) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(1 + i % 5);
    if (i % 2 == 0) pool.ParallelFor(3, [](int64_t, int) {});
  }
}

}  // namespace
}  // namespace jevons
