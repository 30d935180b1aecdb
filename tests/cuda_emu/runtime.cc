#include "tests/cuda_emu/runtime.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/memory.h"
#include "tests/cuda_emu/state.h"
#include "tests/cuda_emu/stream.h"

namespace jevons::emu {
namespace {

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

uint64_t FirstSeed() {
  const char* const text = std::getenv("JEVONS_EMU_SEED");
  return text == nullptr ? 20240501 : std::strtoull(text, nullptr, 0);
}
std::atomic<uint64_t> seed{FirstSeed()};

// Apart from the state's, because a kernel that runs under that one reports too.
struct Misuses {
  std::mutex mutex;
  bool take = false;
  std::string first;
};
Misuses& GetMisuses() {
  static Misuses* const misuses = new Misuses;
  return *misuses;
}

void MakeDevices(State& state) {
  state.devices.clear();
  state.running.clear();
  // Without a device every call fails before it looks at one.
  for (int i = 0; i < std::max(1, state.options.count); ++i) {
    Device device;
    device.default_stream = std::make_shared<Stream>();
    device.default_stream->device = i;
    device.default_stream->is_default = true;
    state.running.push_back(device.default_stream);
    state.devices.push_back(std::move(device));
  }
}

}  // namespace

State::State() : random(seed.load()) { MakeDevices(*this); }

// Never destroyed: threads of host functions may outlive main.
State& GetState() {
  static State* const state = new State;
  return *state;
}

int CurrentDevice() { return current_device; }

int DefaultMajor() {
  const char* const text = std::getenv("JEVONS_EMU_MAJOR");
  return text == nullptr ? 9 : std::atoi(text);
}

int DefaultCount() {
  const char* const text = std::getenv("JEVONS_EMU_DEVICES");
  return text == nullptr ? 1 : std::atoi(text);
}

int MaxSmemBytes(const DeviceOptions& options) {
  // What the hardware has, less 1 KiB of its own: 164 KiB on sm_80, 100 KiB on sm_86, sm_89 and
  // sm_120, 228 KiB on sm_90 and sm_100.
  const bool small = (options.major == 8 && options.minor != 0) || options.major == 12;
  return (small ? 99 : options.major == 8 ? 163 : 227) * 1024;
}

cudaError_t CountCall(State& state, CallKind kind) {
  const int i = static_cast<int>(kind);
  ++state.num_calls[i];
  if (state.fail_at[i] != state.num_calls[i]) return cudaSuccess;
  state.fail_at[i] = 0;
  return state.fail_with;
}

cudaError_t NoteError(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void SetDevice(const DeviceOptions& options) {
  State& state = GetState();
  const Lock lock(state.mutex);
  state.options = options;
  state.max_smem.clear();
  MakeDevices(state);
  ForgetRetired();
  current_device = 0;
  last_error = cudaSuccess;
}

void FailNth(CallKind kind, int64_t n, cudaError_t error) {
  State& state = GetState();
  const Lock lock(state.mutex);
  std::fill(std::begin(state.fail_at), std::end(state.fail_at), 0);
  const int i = static_cast<int>(kind);
  state.fail_at[i] = state.num_calls[i] + n;
  state.fail_with = error;
}

int64_t NumCalls(CallKind kind) {
  State& state = GetState();
  const Lock lock(state.mutex);
  return state.num_calls[static_cast<int>(kind)];
}

void ResetCalls() {
  State& state = GetState();
  const Lock lock(state.mutex);
  std::fill(std::begin(state.num_calls), std::end(state.num_calls), 0);
  std::fill(std::begin(state.fail_at), std::end(state.fail_at), 0);
}

Outstanding OutstandingObjects() {
  State& state = GetState();
  const Lock lock(state.mutex);
  return {.allocations = NumAllocations(),
          .pinned = NumPinned(),
          .streams = state.streams.size(),
          .events = state.events.size(),
          .graphs = state.graphs.size(),
          .graph_execs = state.graph_execs.size()};
}

int64_t OutstandingAllocations() { return OutstandingObjects().allocations; }

void SetHangLimit(int64_t milliseconds) {
  State& state = GetState();
  const Lock lock(state.mutex);
  state.hang_limit_ms = milliseconds;
}

void ReportMisuse(const std::string& text) {
  const std::string full =
      text + WhereInKernel() + " (JEVONS_EMU_SEED=" + std::to_string(Seed()) + ")";
  {
    Misuses& misuses = GetMisuses();
    const Lock lock(misuses.mutex);
    if (!misuses.take) {
      std::fprintf(stderr, "CUDA emulator: %s\n", full.c_str());
      std::abort();
    }
    if (misuses.first.empty()) misuses.first = full;
  }
  DropGrid();
}

void TakeMisuses(bool take) {
  Misuses& misuses = GetMisuses();
  const Lock lock(misuses.mutex);
  misuses.take = take;
}

std::string LastMisuse() {
  Misuses& misuses = GetMisuses();
  const Lock lock(misuses.mutex);
  return std::exchange(misuses.first, "");
}

uint64_t Seed() { return seed.load(); }

void SetSeed(uint64_t new_seed) {
  State& state = GetState();
  const Lock lock(state.mutex);
  seed.store(new_seed);
  state.random.seed(new_seed);
}

}  // namespace jevons::emu

using namespace jevons::emu;

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() {
  State& state = GetState();
  const Lock lock(state.mutex);
  const cudaError_t sticky = state.devices[current_device].sticky;
  return sticky != cudaSuccess ? sticky : last_error;
}

cudaError_t cudaSetDevice(int device) {
  State& state = GetState();
  const Lock lock(state.mutex);
  const cudaError_t planned = CountCall(state, CallKind::kDevice);
  if (planned != cudaSuccess) return NoteError(planned);
  if (device < 0 || device >= state.options.count) return NoteError(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
