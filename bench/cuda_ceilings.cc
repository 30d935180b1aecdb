#include "bench/cuda_ceilings.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/cuda_blas.h"
#include "bench/cuda_kernels.h"
#include "cuda/cuda_error.h"
#include "cuda/device_memory.h"

namespace jevons {
namespace {

using cuda::DeviceBuffer;
using cuda::ToStatus;

constexpr int64_t kReadBytes = int64_t{8} << 30;
constexpr int64_t kProductSize = 8192;
constexpr int kBoundaries = 1000;
constexpr int kRuns = 20;
constexpr int kBlocksPerMultiprocessor = 4;
// Numbers of cudaDeviceAttr that not every version of the header names alike.
constexpr int kClockRateKhz = 13;
constexpr int kMemoryClockRateKhz = 36;

absl::Status Ok(int error, const char* what) {
  return ToStatus(static_cast<cudaError_t>(error), what);
}

// A stream of its own and times by the device's clock.
class Timer {
 public:
  static absl::StatusOr<std::unique_ptr<Timer>> Create() {
    auto timer = std::unique_ptr<Timer>(new Timer());
    RETURN_IF_ERROR(
        Ok(cudaStreamCreateWithFlags(&timer->stream_, cudaStreamNonBlocking), "stream"));
    RETURN_IF_ERROR(Ok(cudaEventCreate(&timer->begin_), "event"));
    RETURN_IF_ERROR(Ok(cudaEventCreate(&timer->end_), "event"));
    return timer;
  }
  ~Timer() {
    if (begin_ != nullptr) cudaEventDestroy(begin_);
    if (end_ != nullptr) cudaEventDestroy(end_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Each of `runs` calls alone, after three that do not count.
  absl::StatusOr<Sample> Time(int runs, const std::function<absl::Status()>& queue) {
    constexpr int kWarmUps = 3;
    std::vector<double> seconds;
    for (int i = 0; i < runs + kWarmUps; ++i) {
      RETURN_IF_ERROR(Ok(cudaEventRecord(begin_, stream_), "event"));
      RETURN_IF_ERROR(queue());
      RETURN_IF_ERROR(Ok(cudaEventRecord(end_, stream_), "event"));
      RETURN_IF_ERROR(Ok(cudaEventSynchronize(end_), "a ceiling"));
      float milliseconds = 0;
      RETURN_IF_ERROR(Ok(cudaEventElapsedTime(&milliseconds, begin_, end_), "event"));
      if (i >= kWarmUps) seconds.push_back(std::max(1e-9, 1e-3 * milliseconds));
    }
    return Summarize(std::move(seconds));
  }

 private:
  Timer() = default;

  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

std::string Spread(const Sample& sample) {
  return absl::StrFormat("median of %d, quartiles %.1f %% apart", sample.count,
                         100 * (sample.high - sample.low) / sample.median);
}

absl::Status MeasureMemory(bool tiny, Timer& timer, CudaCeilings& ceilings, CudaReport& report) {
  size_t free = 0;
  size_t total = 0;
  RETURN_IF_ERROR(Ok(cudaMemGetInfo(&free, &total), "memory"));
  int multiprocessors = 0;
  RETURN_IF_ERROR(
      Ok(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "device"));
  int64_t bytes = std::min<int64_t>(kReadBytes, static_cast<int64_t>(free) / 2);
  if (tiny) bytes = 4 * kReadRoundBytes;
  bytes = bytes / (2 * kReadRoundBytes) * (2 * kReadRoundBytes);
  ASSIGN_OR_RETURN(const std::unique_ptr<DeviceBuffer> buffer, DeviceBuffer::Allocate(bytes + 16));
  char* data = buffer->ptr<char>();
  RETURN_IF_ERROR(Ok(FillRandom(data, bytes, RandomKind::kBf16, 1, 1, timer.stream()), "fill"));
  auto* sink = reinterpret_cast<uint32_t*>(data + bytes);
  const int blocks = tiny ? 2 : kBlocksPerMultiprocessor * multiprocessors;
  ASSIGN_OR_RETURN(const Sample read, timer.Time(tiny ? 1 : kRuns, [&] {
    return Ok(ReadMemory(data, bytes, blocks, sink, timer.stream()), "read");
  }));
  ceilings.read = static_cast<double>(bytes) / read.median;
  report.Number("ceiling/read", ceilings.read * 1e-9, "GB/s",
                absl::StrFormat("of %.1f GB, %s", static_cast<double>(bytes) * 1e-9, Spread(read)));
  ASSIGN_OR_RETURN(const Sample copy, timer.Time(tiny ? 1 : kRuns, [&] {
    return Ok(cudaMemcpyAsync(data + bytes / 2, data, static_cast<size_t>(bytes / 2),
                              cudaMemcpyDeviceToDevice, timer.stream()),
              "copy");
  }));
  ceilings.copy = static_cast<double>(bytes) / copy.median;
  report.Number("ceiling/copy", ceilings.copy * 1e-9, "GB/s",
                "bytes read and bytes written, " + Spread(copy));
  return absl::OkStatus();
}

// One large product; 0 where it is not offered.
absl::StatusOr<double> MeasureProduct(BlasKind kind, const std::string& name, int64_t size,
                                      Timer& timer, CudaReport& report) {
  auto product = MakeBlasProduct(kind, size, size, size);
  if (!product.ok()) {
    report.Text(name, absl::StrCat("not offered: ", std::string(product.status().message())));
    return 0;
  }
  const bool bf16 = kind == BlasKind::kBf16;
  const int64_t in_bytes = size * size * (bf16 ? 2 : 1);
  const int64_t scale_bytes = size * size / 128 * 4;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers;
  for (int64_t bytes : {in_bytes, in_bytes, scale_bytes, scale_bytes, size * size * 2}) {
    ASSIGN_OR_RETURN(buffers.emplace_back(), DeviceBuffer::Allocate(bytes));
    const bool scales = bytes == scale_bytes;
    const RandomKind random = scales ? RandomKind::kF32
                              : bf16 ? RandomKind::kBf16
                                     : RandomKind::kE4m3;
    RETURN_IF_ERROR(
        Ok(FillRandom(buffers.back()->data(), bytes, random, 1, buffers.size(), timer.stream()),
           "fill"));
  }
  const float* w_scales = bf16 ? nullptr : buffers[2]->ptr<float>();
  const float* x_scales = bf16 ? nullptr : buffers[3]->ptr<float>();
  const auto timed = timer.Time(kRuns, [&] {
    return (*product)->Run(buffers[0]->data(), buffers[1]->data(), w_scales, x_scales,
                           buffers[4]->data(), timer.stream());
  });
  if (!timed.ok()) {
    report.Text(name, absl::StrCat("not offered: ", std::string(timed.status().message())));
    return 0;
  }
  const double n = static_cast<double>(size);
  const double flops = 2 * n * n * n / timed->median;
  report.Number(name, flops * 1e-12, "TFLOP/s", absl::StrCat(size, "^3, ", Spread(*timed)));
  return flops;
}

absl::Status MeasureBoundary(bool tiny, Timer& timer, CudaCeilings& ceilings, CudaReport& report) {
  const int count = tiny ? 4 : kBoundaries;
  RETURN_IF_ERROR(
      Ok(cudaStreamBeginCapture(timer.stream(), cudaStreamCaptureModeThreadLocal), "capture"));
  for (int i = 0; i < count; ++i) RETURN_IF_ERROR(Ok(DoNothing(timer.stream()), "empty kernel"));
  cudaGraph_t graph = nullptr;
  RETURN_IF_ERROR(Ok(cudaStreamEndCapture(timer.stream(), &graph), "capture"));
  cudaGraphExec_t exec = nullptr;
  RETURN_IF_ERROR(Ok(cudaGraphInstantiate(&exec, graph, 0), "graph"));
  cudaGraphDestroy(graph);
  const auto timed = timer.Time(tiny ? 1 : kRuns,
                                [&] { return Ok(cudaGraphLaunch(exec, timer.stream()), "graph"); });
  cudaGraphExecDestroy(exec);
  RETURN_IF_ERROR(timed.status());
  ceilings.boundary = timed->median / count;
  report.Number("ceiling/graph_boundary", ceilings.boundary * 1e6, "us",
                absl::StrCat(count, " empty kernels one after the other, ", Spread(*timed)));
  return absl::OkStatus();
}

std::string Version(int number) { return absl::StrCat(number / 1000, ".", number % 1000 / 10); }

}  // namespace

absl::Status ReportDevice(CudaReport& report) {
  cudaDeviceProp properties;
  RETURN_IF_ERROR(Ok(cudaGetDeviceProperties(&properties, 0), "device"));
  int driver = 0;
  int runtime = 0;
  RETURN_IF_ERROR(Ok(cudaDriverGetVersion(&driver), "driver"));
  RETURN_IF_ERROR(Ok(cudaRuntimeGetVersion(&runtime), "runtime"));
  report.Text("device/name", properties.name);
  report.Text("device/compute_capability", absl::StrCat(properties.major, ".", properties.minor));
  report.Number("device/multiprocessors", properties.multiProcessorCount, "");
  report.Number("device/memory", static_cast<double>(properties.totalGlobalMem) * 1e-9, "GB");
  report.Number("device/l2", properties.l2CacheSize * 1e-6, "MB");
  report.Text("device/driver", absl::StrCat("CUDA ", Version(driver)));
  report.Text("device/runtime", absl::StrCat("CUDA ", Version(runtime)));
  const std::pair<const char*, int> clocks[] = {{"device/largest_clock", kClockRateKhz},
                                                {"device/memory_clock", kMemoryClockRateKhz}};
  for (const auto& [name, attribute] : clocks) {
    int khz = 0;
    if (cudaDeviceGetAttribute(&khz, static_cast<cudaDeviceAttr>(attribute), 0) == cudaSuccess) {
      report.Number(name, khz * 1e-3, "MHz");
    } else {
      cudaGetLastError();
      report.Text(name, "not told");
    }
  }
  return absl::OkStatus();
}

absl::Status MeasureCeilings(bool tiny, CudaReport& report) {
  CudaCeilings ceilings;
  ASSIGN_OR_RETURN(const std::unique_ptr<Timer> timer, Timer::Create());
  RETURN_IF_ERROR(MeasureMemory(tiny, *timer, ceilings, report));
  const int64_t size = tiny ? 256 : kProductSize;
  ASSIGN_OR_RETURN(ceilings.bf16,
                   MeasureProduct(BlasKind::kBf16, "ceiling/cublaslt_bf16", size, *timer, report));
  ASSIGN_OR_RETURN(
      ceilings.fp8_blocks,
      MeasureProduct(BlasKind::kFp8Blocks, "ceiling/cublaslt_fp8_blocks", size, *timer, report));
  ASSIGN_OR_RETURN(
      ceilings.fp8_tensor,
      MeasureProduct(BlasKind::kFp8Tensor, "ceiling/cublaslt_fp8_tensor", size, *timer, report));
  RETURN_IF_ERROR(MeasureBoundary(tiny, *timer, ceilings, report));
  report.set_ceilings(ceilings);
  return absl::OkStatus();
}

}  // namespace jevons
