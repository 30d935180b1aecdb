// Other programs, run by a test.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace jevons {

struct ProcessResult {
  int exit_code = -1;  // -1: killed by a signal or by the time limit
  std::string out;
  std::string err;
};

struct ProcessOptions {
  std::string input = {};                     // for stdin
  std::vector<std::string> environment = {};  // NAME=VALUE, beside the test's own
  absl::Duration limit = absl::Minutes(5);
};

// Runs argv[0] to its end.
ProcessResult RunProcess(const std::vector<std::string>& argv, const ProcessOptions& options = {});

// A program that runs beside the test. Thread-compatible.
class Process {
 public:
  virtual ~Process() = default;  // kills it

  static std::unique_ptr<Process> Start(const std::vector<std::string>& argv);

  // The next line of its stdout, without the newline; empty at the end or after `limit`.
  virtual std::string ReadLine(absl::Duration limit) = 0;
  virtual pid_t pid() const = 0;
  virtual void Signal(int number) = 0;
  // Its exit code; -1 if a signal ended it or it still runs after `limit`.
  virtual int Wait(absl::Duration limit) = 0;
};

}  // namespace jevons
