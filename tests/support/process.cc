#include "tests/support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>

#include "absl/time/clock.h"

extern char** environ;

namespace jevons {
namespace {

struct Pipe {
  Pipe() { pipe2(ends.data(), O_CLOEXEC); }
  ~Pipe() {
    CloseRead();
    CloseWrite();
  }
  void CloseRead() { Close(ends[0]); }
  void CloseWrite() { Close(ends[1]); }
  static void Close(int& fd) {
    if (fd >= 0) close(fd);
    fd = -1;
  }
  std::array<int, 2> ends = {-1, -1};
};

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (const std::string& s : strings) out.push_back(const_cast<char*>(s.c_str()));
  out.push_back(nullptr);
  return out;
}

struct Ends {
  int in = -1;
  int out = -1;
  int err = -1;  // -1: the test's own
};

pid_t Spawn(const std::vector<std::string>& argv, const std::vector<std::string>& more_environment,
            const Ends& ends) {
  std::vector<std::string> environment = more_environment;
  for (char** variable = environ; *variable != nullptr; ++variable)
    environment.push_back(*variable);
  const std::vector<char*> arguments = Pointers(argv);
  const std::vector<char*> variables = Pointers(environment);
  const pid_t pid = fork();
  if (pid != 0) return pid;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(ends.in, STDIN_FILENO);
  dup2(ends.out, STDOUT_FILENO);
  if (ends.err >= 0) dup2(ends.err, STDERR_FILENO);
  execve(arguments[0], arguments.data(), variables.data());
  _exit(127);
}

// The exit code, or -1 after killing it where it does not end in time.
int WaitFor(pid_t pid, absl::Time end) {
  int status = 0;
  while (waitpid(pid, &status, WNOHANG) == 0) {
    if (absl::Now() > end) {
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
      return -1;
    }
    absl::SleepFor(absl::Milliseconds(2));
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

class ProcessImpl : public Process {
 public:
  explicit ProcessImpl(const std::vector<std::string>& argv) {
    const int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pid_ = Spawn(argv, {}, {.in = in, .out = out_.ends[1]});
    close(in);
    out_.CloseWrite();
  }
  ~ProcessImpl() override {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  std::string ReadLine(absl::Duration limit) override {
    const absl::Time end = absl::Now() + limit;
    size_t newline = std::string::npos;
    while ((newline = held_.find('\n')) == std::string::npos && absl::Now() < end) {
      pollfd readable = {out_.ends[0], POLLIN, 0};
      if (poll(&readable, 1, 50) <= 0) continue;
      char buffer[4096];
      const ssize_t count = read(out_.ends[0], buffer, sizeof(buffer));
      if (count <= 0) break;
      held_.append(buffer, static_cast<size_t>(count));
    }
    if (newline == std::string::npos) return "";
    std::string line = held_.substr(0, newline);
    held_.erase(0, newline + 1);
    return line;
  }
  pid_t pid() const override { return pid_; }
  void Signal(int number) override { kill(pid_, number); }
  int Wait(absl::Duration limit) override {
    const int code = WaitFor(pid_, absl::Now() + limit);
    pid_ = -1;
    return code;
  }

 private:
  Pipe out_;
  pid_t pid_ = -1;
  std::string held_;
};

}  // namespace

ProcessResult RunProcess(const std::vector<std::string>& argv, const ProcessOptions& options) {
  signal(SIGPIPE, SIG_IGN);
  Pipe in;
  Pipe out;
  Pipe err;
  const pid_t pid =
      Spawn(argv, options.environment, {.in = in.ends[0], .out = out.ends[1], .err = err.ends[1]});
  in.CloseRead();
  out.CloseWrite();
  err.CloseWrite();
  ProcessResult result;
  const absl::Time end = absl::Now() + options.limit;
  std::string input = options.input;
  while (absl::Now() < end && (out.ends[0] >= 0 || err.ends[0] >= 0)) {
    if (input.empty()) in.CloseWrite();
    std::array<pollfd, 3> fds = {pollfd{out.ends[0], POLLIN, 0}, pollfd{err.ends[0], POLLIN, 0},
                                 pollfd{in.ends[1], POLLOUT, 0}};
    if (poll(fds.data(), fds.size(), 50) <= 0) continue;
    char buffer[1 << 16];
    for (int i = 0; i < 2; ++i) {
      if (fds[i].revents == 0) continue;
      const ssize_t count = read(fds[i].fd, buffer, sizeof(buffer));
      if (count > 0) {
        (i == 0 ? result.out : result.err).append(buffer, static_cast<size_t>(count));
      } else {
        i == 0 ? out.CloseRead() : err.CloseRead();
      }
    }
    if (fds[2].revents != 0) {
      const ssize_t count = write(in.ends[1], input.data(), std::min<size_t>(input.size(), 4096));
      input.erase(0, count > 0 ? static_cast<size_t>(count) : input.size());
    }
  }
  result.exit_code = WaitFor(pid, end);
  return result;
}

std::unique_ptr<Process> Process::Start(const std::vector<std::string>& argv) {
  return std::make_unique<ProcessImpl>(argv);
}

}  // namespace jevons
