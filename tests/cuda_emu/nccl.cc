#include <nccl.h>

#include <atomic>
#include <cstring>
#include <optional>

#include "tests/cuda_emu/collectives.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/nccl_plan.h"
#include "tests/cuda_emu/stream.h"

namespace jevons::emu {
namespace {

// Calls of a communicator that does not block: they come into the stream when somebody has asked for
// the communicator's state so many times.
struct Launch {
  cudaStream_t stream = nullptr;
  std::vector<Transfer> calls;
  int num_questions = 0;
};

struct Communicator {
  std::shared_ptr<Clique> clique;
  int rank = 0;
  int device = 0;
  bool blocking = true;
  bool finalized = false;
  bool aborted = false;
  std::optional<Launch> launch;
  ncclResult_t error = ncclSuccess;  // of this rank alone
  std::shared_ptr<Mark> end;         // of its last call
  std::weak_ptr<Stream> last_stream;
  // Every call that a graph holds is one more owner: while there are any the communicator stays.
  std::shared_ptr<int> graph_calls = std::make_shared<int>(0);
  size_t num_windows = 0;                                   // registered by this rank
  std::vector<std::unique_ptr<ncclWindow_vidmem>> windows;  // of these, still registered

  bool all_joined() const { return clique->num_joined == clique->num_ranks; }
  bool has_windows() const {
    return std::all_of(clique->windows.begin(), clique->windows.begin() + num_windows,
                       [](const auto& w) { return std::count(w.begin(), w.end(), nullptr) == 0; });
  }
  bool ready() const { return all_joined() && has_windows() && !launch.has_value(); }
};

struct Nccl {
  Table<ncclComm_t, Communicator> communicators;
  std::map<std::string, std::shared_ptr<Clique>> forming;  // by unique id
};
Nccl& GetNccl() {
  static Nccl* const nccl = new Nccl;
  return *nccl;
}

struct Call {
  std::shared_ptr<Communicator> comm;
  cudaStream_t stream = nullptr;
  Transfer transfer;
};
thread_local int group_depth = 0;
thread_local std::vector<Call> group_calls;
thread_local ncclResult_t group_error = ncclSuccess;  // of a call within the group
thread_local std::vector<std::shared_ptr<Communicator>> group_joins;

// The run of one group of calls in a stream, for each of its executions.
struct GroupRun {
  std::vector<std::shared_ptr<Transfer>> transfers;
  int num_asked = 0;
};

cudaError_t RunGroup(Communicator& comm, const std::vector<Transfer>& calls, GroupRun& run) {
  if (comm.aborted) return cudaSuccess;
  const NcclPlan& plan = GetNcclPlan();
  if (run.transfers.empty()) {
    const auto delay = plan.delay.find(comm.rank);
    const int times = delay == plan.delay.end() ? 0 : delay->second;
    if (plan.held_rank == comm.rank || run.num_asked++ < times) return cudaErrorNotReady;
    for (const Transfer& call : calls) run.transfers.push_back(std::make_shared<Transfer>(call));
    for (const auto& transfer : run.transfers) Arrive(*comm.clique, comm.rank, transfer);
    GetState().changed.notify_all();
  }
  const bool done = std::all_of(run.transfers.begin(), run.transfers.end(),
                                [](const auto& transfer) { return transfer->done; });
  return done ? cudaSuccess : cudaErrorNotReady;
}

// One group of calls of one communicator. Its calls on several streams keep their order.
ncclResult_t SubmitGroupOf(State& state, const std::shared_ptr<Communicator>& comm,
                           cudaStream_t handle, std::vector<Transfer> calls) {
  const std::shared_ptr<Stream> stream = FindStream(state, handle);
  if (stream == nullptr || stream->device != comm->device) return ncclInvalidArgument;
  const bool captured = stream->capture != nullptr;
  if (!captured && comm->end != nullptr && comm->last_stream.lock() != stream) {
    AddWait(state, stream, comm->end);
  }
  auto runs = std::make_shared<std::map<int64_t, GroupRun>>();
  const std::shared_ptr<int> in_graph = captured ? comm->graph_calls : nullptr;
  const cudaError_t error = Submit(
      state, handle, {"a collective", [=, calls = std::move(calls)](int64_t execution) {
                        static_cast<void>(in_graph);  // lives with the graph
                        const cudaError_t result = RunGroup(*comm, calls, (*runs)[execution]);
                        if (result != cudaErrorNotReady) runs->erase(execution);
                        return result;
                      }});
  if (error != cudaSuccess) {
    NoteError(error);
    return ncclUnhandledCudaError;
  }
  if (!captured) {
    comm->end = AddMark(state, stream);
    comm->last_stream = stream;
  }
  return ncclSuccess;
}

ncclResult_t SubmitCalls(State& state, const std::vector<Call>& calls) {
  std::vector<bool> taken(calls.size());
  ncclResult_t out = ncclSuccess;
  for (size_t i = 0; i < calls.size(); ++i) {
    if (taken[i]) continue;
    std::vector<Transfer> own;
    for (size_t j = i; j < calls.size(); ++j) {
      if (calls[j].comm != calls[i].comm) continue;
      if (calls[j].stream != calls[i].stream) return ncclInvalidUsage;  // beyond the emulator
      taken[j] = true;
      own.push_back(calls[j].transfer);
    }
    const std::shared_ptr<Communicator>& comm = calls[i].comm;
    if (!comm->blocking) {
      comm->launch = Launch{calls[i].stream, std::move(own), state.Below(4)};
      out = ncclInProgress;
      continue;
    }
    const ncclResult_t result = SubmitGroupOf(state, comm, calls[i].stream, std::move(own));
    if (result != ncclSuccess) return result;
  }
  return out;
}

// The state of a communicator, which moves on by being asked for.
ncclResult_t AskFor(State& state, const std::shared_ptr<Communicator>& comm) {
  if (comm->launch.has_value() && comm->launch->num_questions-- <= 0) {
    Launch launch = *std::exchange(comm->launch, std::nullopt);
    const ncclResult_t result = SubmitGroupOf(state, comm, launch.stream, std::move(launch.calls));
    if (result != ncclSuccess) comm->error = result;
  }
  if (comm->error != ncclSuccess) return comm->error;
  if (comm->clique->error != ncclSuccess) return comm->clique->error;
  return comm->ready() ? ncclSuccess : ncclInProgress;
}

// Replays that are queued hold their graph too.
ncclResult_t WaitForGraphs(State& state, Lock& lock, const Communicator& comm) {
  const cudaError_t error =
      RunUntil(state, lock, comm.device, "the end of a communicator whose calls a graph holds",
               nullptr, [&] { return comm.graph_calls.use_count() == 1; });
  return error == cudaErrorLaunchTimeout ? ncclInternalError : ncclSuccess;
}

ncclResult_t WaitForPeers(State& state, Lock& lock, const Communicator& comm) {
  const auto limit = std::chrono::milliseconds(state.hang_limit_ms);
  const bool come = state.changed.wait_for(lock, limit, [&] { return comm.all_joined(); });
  if (come) return ncclSuccess;
  ReportMisuse("ncclCommInitRank hangs: not all ranks have come");
  return ncclInternalError;
}

ncclResult_t Join(State& state, const std::string& id, Communicator& comm, int num_ranks) {
  std::shared_ptr<Clique>& clique = GetNccl().forming[id];
  if (clique == nullptr) {
    clique = std::make_shared<Clique>();
    clique->num_ranks = num_ranks;
    clique->devices.assign(num_ranks, -1);
    clique->collectives.resize(num_ranks);
  }
  const std::vector<int>& devices = clique->devices;
  const bool same_device = std::find(devices.begin(), devices.end(), comm.device) != devices.end();
  if (clique->num_ranks != num_ranks || devices[comm.rank] >= 0 || same_device) {
    return ncclInvalidUsage;
  }
  comm.clique = clique;
  clique->devices[comm.rank] = comm.device;
  ++clique->num_joined;
  if (comm.all_joined()) GetNccl().forming.erase(id);
  state.changed.notify_all();
  return ncclSuccess;
}

ncclResult_t CheckCall(Communicator* comm, const Transfer& transfer) {
  if (comm == nullptr || TypeBytes(transfer.type) == 0 || transfer.peer < 0 ||
      transfer.peer >= comm->clique->num_ranks) {
    return ncclInvalidArgument;
  }
  if (comm->finalized || comm->aborted) return ncclInvalidUsage;
  if (!comm->ready()) {
    // The error stays, but for one who asks too early whether all ranks have come.
    if (comm->launch.has_value()) comm->error = ncclInvalidArgument;
    return comm->launch.has_value() ? ncclInvalidArgument : ncclInvalidUsage;
  }
  const bool reduces =
      transfer.kind == TransferKind::kAllReduce || transfer.kind == TransferKind::kReduceScatter;
  return reduces && !CanReduce(transfer.type, transfer.op) ? ncclInvalidArgument : ncclSuccess;
}

// What a call on a living communicator gives.
template <typename Body>
ncclResult_t WithCommunicator(ncclComm_t handle, Body body) {
  State& state = GetState();
  const Lock lock(state.mutex);
  const std::shared_ptr<Communicator> comm = GetNccl().communicators.Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  body(*comm);
  state.changed.notify_all();
  return ncclSuccess;
}

}  // namespace

ncclResult_t Enqueue(ncclComm_t handle, cudaStream_t stream, const Transfer& transfer) {
  State& state = GetState();
  const Lock lock(state.mutex);
  const std::shared_ptr<Communicator> comm = GetNccl().communicators.Find(handle);
  ncclResult_t result = CountNcclCall();
  if (result == ncclSuccess) result = CheckCall(comm.get(), transfer);
  if (group_depth > 0) {
    if (result == ncclSuccess) group_calls.push_back({comm, stream, transfer});
    if (group_error == ncclSuccess) group_error = result;
    return result;
  }
  return result == ncclSuccess ? SubmitCalls(state, {Call{comm, stream, transfer}}) : result;
}

ncclResult_t RegisterWindow(ncclComm_t handle, void* data, ncclWindow_t* window) {
  State& state = GetState();
  const Lock lock(state.mutex);
  const std::shared_ptr<Communicator> comm = GetNccl().communicators.Find(handle);
  const ncclResult_t planned = CountNcclCall();
  if (planned != ncclSuccess) return planned;
  if (comm == nullptr || !comm->ready()) return ncclInvalidUsage;
  std::vector<std::vector<char*>>& windows = comm->clique->windows;
  const size_t number = comm->num_windows++;
  if (windows.size() <= number) windows.emplace_back(comm->clique->num_ranks, nullptr);
  windows[number][comm->rank] = static_cast<char*>(data);
  comm->windows.push_back(
      std::make_unique<ncclWindow_vidmem>(ncclWindow_vidmem{comm->clique, number}));
  *window = comm->windows.back().get();
  state.changed.notify_all();
  return comm->ready() ? ncclSuccess : ncclInProgress;
}

ncclResult_t ForgetWindow(ncclComm_t handle, ncclWindow_t window) {
  const Lock lock(GetState().mutex);
  const std::shared_ptr<Communicator> comm = GetNccl().communicators.Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  const size_t erased =
      std::erase_if(comm->windows, [window](const auto& own) { return own.get() == window; });
  return erased == 1 ? ncclSuccess : ncclInvalidArgument;
}

int64_t OutstandingCommunicators() {
  const Lock lock(GetState().mutex);
  return GetNccl().communicators.size();
}

}  // namespace jevons::emu

using namespace jevons::emu;

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<uint64_t> next{1};
  const uint64_t number = next++;
  std::memset(id, 0, sizeof(*id));
  std::memcpy(id->internal, &number, sizeof(number));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int num_ranks, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(comm, num_ranks, id, rank, nullptr);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* handle, int num_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  State& state = GetState();
  Lock lock(state.mutex);
  *handle = nullptr;
  const ncclResult_t planned = CountNcclCall();
  if (planned != ncclSuccess) return planned;
  if (num_ranks < 1 || rank < 0 || rank >= num_ranks) return ncclInvalidArgument;
  auto comm = std::make_shared<Communicator>();
  comm->rank = rank;
  comm->device = CurrentDevice();
  comm->blocking = config == nullptr || config->blocking != 0;
  const ncclResult_t joined =
      Join(state, std::string(id.internal, sizeof(id.internal)), *comm, num_ranks);
  if (joined != ncclSuccess) return joined;
  *handle = GetNccl().communicators.Add(comm);
  if (!comm->blocking) return comm->all_joined() ? ncclSuccess : ncclInProgress;
  if (group_depth == 0) return WaitForPeers(state, lock, *comm);
  group_joins.push_back(comm);
  return ncclSuccess;
}

// Queued calls still run.
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  return WithCommunicator(comm, [](Communicator& c) { c.finalized = true; });
}

ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  State& state = GetState();
  Lock lock(state.mutex);
  const std::shared_ptr<Communicator> comm = GetNccl().communicators.Find(handle);
  if (comm == nullptr || !comm->ready()) return ncclInvalidArgument;
  const ncclResult_t result = WaitForGraphs(state, lock, *comm);
  GetNccl().communicators.Remove(handle);
  return result;
}

// What this rank has queued ends without a result, and the others wait for it.
ncclResult_t ncclCommAbort(ncclComm_t handle) {
  State& state = GetState();
  Lock lock(state.mutex);
  const std::shared_ptr<Communicator> comm = GetNccl().communicators.Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  comm->aborted = true;
  comm->launch.reset();
  Withdraw(*comm->clique, comm->rank);
  state.changed.notify_all();
  const ncclResult_t result = WaitForGraphs(state, lock, *comm);
  GetNccl().communicators.Remove(handle);
  return result;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  State& state = GetState();
  const Lock lock(state.mutex);
  const std::shared_ptr<Communicator> comm = GetNccl().communicators.Find(handle);
  if (comm == nullptr) return ncclInvalidArgument;
  *error = AskFor(state, comm);
  state.changed.notify_all();
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
  return WithCommunicator(comm, [&](const Communicator& c) { *count = c.clique->num_ranks; });
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
  return WithCommunicator(comm, [&](const Communicator& c) { *rank = c.rank; });
}

ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int* device) {
  return WithCommunicator(comm, [&](const Communicator& c) { *device = c.device; });
}

const char* ncclGetErrorString(ncclResult_t result) {
  constexpr const char* kTexts[] = {"no error",
                                    "unhandled cuda error",
                                    "unhandled system error",
                                    "internal error",
                                    "invalid argument",
                                    "invalid usage",
                                    "remote process exited or there was a network error",
                                    "NCCL operation in progress"};
  return result >= 0 && result <= ncclInProgress ? kTexts[result] : "unknown result code";
}

const char* ncclGetLastError(ncclComm_t handle) {
  const Lock lock(GetState().mutex);
  const auto comm = GetNccl().communicators.Find(handle);
  return comm == nullptr ? "" : comm->clique->error_text.c_str();
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (group_depth == 0) return ncclInvalidUsage;
  if (--group_depth > 0) return ncclSuccess;
  const std::vector<Call> calls = std::exchange(group_calls, {});
  const auto joins = std::exchange(group_joins, {});
  const ncclResult_t failed = std::exchange(group_error, ncclSuccess);
  if (failed != ncclSuccess) return failed;
  State& state = GetState();
  Lock lock(state.mutex);
  for (const auto& comm : joins) {
    const ncclResult_t result = WaitForPeers(state, lock, *comm);
    if (result != ncclSuccess) return result;
  }
  return SubmitCalls(state, calls);
}
