#include "tests/support/network_lab.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <queue>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/mutex.h"
#include "base/random.h"
#include "tests/support/namespaces.h"

namespace jevons {
namespace {

constexpr char kDevice[] = "host";
constexpr uint32_t kNetwork = 10 << 24 | 77 << 16;  // 10.77.0.0/24
constexpr size_t kMaxPacket = 1 << 16;
constexpr int kMaxBurst = 64;  // packets of one host before the next one has its turn
constexpr absl::Duration kLongestRest = absl::Milliseconds(20);

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

struct Host {
  Fd space;    // its namespace
  Fd device;   // this process's end of its device
  Fd control;  // a socket in it
};

absl::Status Fault(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

absl::Status CallDevice(int fd, unsigned long call, ifreq& request, const std::string& what) {
  if (ioctl(fd, call, &request) == 0) return absl::OkStatus();
  return Fault(what);
}

ifreq Named(const char* device) {
  ifreq out = {};
  std::strncpy(out.ifr_name, device, IFNAMSIZ - 1);
  return out;
}

absl::Status SetAddress(int fd, unsigned long call, uint32_t value, const std::string& what) {
  ifreq request = Named(kDevice);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(value);
  std::memcpy(&request.ifr_addr, &address, sizeof(address));
  return CallDevice(fd, call, request, what);
}

absl::Status SetUp(int fd, const char* device, bool up) {
  ifreq request = Named(device);
  const std::string what = absl::StrCat("switching the device ", device);
  RETURN_IF_ERROR(CallDevice(fd, SIOCGIFFLAGS, request, what));
  request.ifr_flags =
      static_cast<short>(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
  return CallDevice(fd, SIOCSIFFLAGS, request, what);
}

// In the namespace of the calling thread.
absl::StatusOr<Host> OpenHost(int number) {
  Host host;
  host.space = Fd(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  if (host.space.get() < 0) return Fault("opening the network namespace");
  host.device = Fd(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (host.device.get() < 0) return Fault("opening /dev/net/tun");
  ifreq request = Named(kDevice);
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  RETURN_IF_ERROR(CallDevice(host.device.get(), TUNSETIFF, request, "making a tun device"));
  host.control = Fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (host.control.get() < 0) return Fault("a socket in the namespace");
  const int fd = host.control.get();
  const uint32_t address = kNetwork + static_cast<uint32_t>(number) + 1;
  RETURN_IF_ERROR(SetAddress(fd, SIOCSIFADDR, address, "setting an address"));
  RETURN_IF_ERROR(SetAddress(fd, SIOCSIFNETMASK, 0xFFFFFF00, "setting a network mask"));
  RETURN_IF_ERROR(SetUp(fd, kDevice, true));
  RETURN_IF_ERROR(SetUp(fd, "lo", true));
  return host;
}

struct Packet {
  absl::Time due;
  int64_t number;  // packets of one way keep their order
  size_t to;
  std::string bytes;
};
struct Later {
  bool operator()(const Packet& a, const Packet& b) const {
    return a.due != b.due ? a.due > b.due : a.number > b.number;
  }
};

class NetworkLabImpl : public NetworkLab {
 public:
  NetworkLabImpl(std::vector<Host> hosts, uint64_t seed)
      : hosts_(std::move(hosts)),
        random_(seed),
        paths_(hosts_.size(), std::vector<NetworkPath>(hosts_.size())),
        switch_([this] { Switch(); }) {}
  ~NetworkLabImpl() override {
    stop_ = true;
    switch_.join();
  }

  int own_host() const override { return static_cast<int>(hosts_.size()) - 1; }

  std::unique_ptr<Process> Start(int host, const std::vector<std::string>& argv) override {
    std::unique_ptr<Process> out;
    // A thread of its own, which leaves this one where it is.
    std::thread([&] {
      if (setns(hosts_[host].space.get(), CLONE_NEWNET) == 0) out = Process::Start(argv);
    }).join();
    return out;
  }

  void SetPath(int from, int to, const NetworkPath& path) override {
    MutexLock lock(&mutex_);
    paths_[from][to] = path;
  }
  void SetBetween(const std::vector<int>& hosts, const NetworkPath& path) override {
    MutexLock lock(&mutex_);
    for (const int a : hosts) {
      for (const int b : hosts) paths_[a][b] = path;
    }
  }
  void SetHost(int host, const NetworkPath& path) override {
    MutexLock lock(&mutex_);
    for (size_t other = 0; other < hosts_.size(); ++other) {
      paths_[host][other] = paths_[other][host] = path;
    }
  }
  absl::Status SetDevice(int host, bool up) override {
    return SetUp(hosts_[host].control.get(), kDevice, up);
  }

  int64_t num_passed() const override { return num_passed_; }
  int64_t num_lost() const override { return num_lost_; }

 private:
  void Switch() {
    std::vector<pollfd> waited;
    for (const Host& host : hosts_) waited.push_back({host.device.get(), POLLIN, 0});
    while (!stop_) {
      absl::Duration rest = kLongestRest;
      if (!late_.empty())
        rest = std::clamp(late_.top().due - absl::Now(), absl::ZeroDuration(), rest);
      const timespec time = absl::ToTimespec(rest);
      if (ppoll(waited.data(), waited.size(), &time, nullptr) < 0) continue;
      for (size_t h = 0; h < hosts_.size(); ++h) {
        if (waited[h].revents != 0) TakeFrom(h);
      }
      const absl::Time now = absl::Now();
      while (!late_.empty() && late_.top().due <= now) {
        Deliver(late_.top().to, late_.top().bytes.data(), late_.top().bytes.size());
        late_.pop();
      }
    }
  }

  void TakeFrom(size_t from) {
    for (int i = 0; i < kMaxBurst; ++i) {
      const ssize_t size = read(hosts_[from].device.get(), buffer_, kMaxPacket);
      if (size < 20) return;
      // Of IPv4 the destination is in bytes 16 to 19; nothing else has an address here.
      const size_t to = buffer_[19] - size_t{1};
      if (buffer_[0] >> 4 != 4 || to >= hosts_.size()) continue;
      PassOn(from, to, static_cast<size_t>(size));
    }
  }

  void PassOn(size_t from, size_t to, size_t size) {
    NetworkPath path;
    {
      MutexLock lock(&mutex_);
      path = paths_[from][to];
    }
    if (path.loss > 0 && random_.Uniform() < path.loss) {
      ++num_lost_;
      return;
    }
    if (path.delay == absl::ZeroDuration()) return Deliver(to, buffer_, size);
    late_.push({absl::Now() + path.delay, next_number_++, to,
                std::string(reinterpret_cast<const char*>(buffer_), size)});
  }

  // A device that is down, or whose queue is full, loses it, as a real one would.
  void Deliver(size_t to, const void* bytes, size_t size) {
    const bool passed = write(hosts_[to].device.get(), bytes, size) == static_cast<ssize_t>(size);
    ++(passed ? num_passed_ : num_lost_);
  }

  const std::vector<Host> hosts_;
  std::atomic<bool> stop_ = false;
  std::atomic<int64_t> num_passed_ = 0;
  std::atomic<int64_t> num_lost_ = 0;
  Random random_;  // of the switch, as are the next three
  int64_t next_number_ = 0;
  std::priority_queue<Packet, std::vector<Packet>, Later> late_;
  uint8_t buffer_[kMaxPacket];
  mutable Mutex mutex_;
  std::vector<std::vector<NetworkPath>> paths_ ABSL_GUARDED_BY(mutex_);
  std::thread switch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NetworkLab>> NetworkLab::Create(int num_hosts, uint64_t seed) {
  RETURN_IF_ERROR(EnterNamespaces(CLONE_NEWNET));
  std::vector<Host> hosts;
  for (int h = 0; h < num_hosts; ++h) {
    absl::StatusOr<Host> host;
    std::thread([&] {
      host = unshare(CLONE_NEWNET) == 0 ? OpenHost(h) : Fault("a network namespace for a host");
    }).join();
    RETURN_IF_ERROR(host.status());
    hosts.push_back(*std::move(host));
  }
  ASSIGN_OR_RETURN(Host own, OpenHost(num_hosts));
  hosts.push_back(std::move(own));
  return std::make_unique<NetworkLabImpl>(std::move(hosts), seed);
}

std::string NetworkLab::Address(int host) { return absl::StrCat("10.77.0.", host + 1); }

}  // namespace jevons
