#include <dlfcn.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>

#include "client/client.h"
#include "gtest/gtest.h"
#include "server/server.h"
#include "tests/support/fake_engine.h"

namespace {

std::atomic<int> failures_to_come{0};

bool IsStream(int fd) {
  int type = 0;
  socklen_t size = sizeof(type);
  return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

}  // namespace

// In front of libc's, for this program: as often as asked for a TCP connection fails.
extern "C" int connect(int fd, const sockaddr* address, socklen_t size) {
  static const auto real = reinterpret_cast<decltype(&connect)>(dlsym(RTLD_NEXT, "connect"));
  if (failures_to_come.load() > 0 && IsStream(fd)) {
    --failures_to_come;
    errno = ENOENT;
    return -1;
  }
  return real(fd, address, size);
}

namespace jevons {
namespace {

TEST(ClientConnectTest, ACallSurvivesAConnectionThatFails) {
  FakeEngine engine;
  const auto server = Server::Start({.listen = "127.0.0.1:0"}, &engine);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = Client::Connect((*server)->address());
  failures_to_come = 1;
  const auto models = client->ListModels();
  EXPECT_EQ(failures_to_come, 0);
  EXPECT_TRUE(models.ok()) << models.status();
}

TEST(ClientConnectTest, ACallToNobodyFailsAndNamesTheAddress) {
  const auto client = Client::Connect("127.0.0.1:1");
  const absl::Status status = client->ListModels().status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_NE(status.message().find("127.0.0.1:1"), status.message().npos) << status;
}

}  // namespace
}  // namespace jevons
