// Copies and fills. They read and write when the stream runs them, not when they are queued.
#include <cstring>

#include "tests/cuda_emu/capture.h"
#include "tests/cuda_emu/emulator.h"
#include "tests/cuda_emu/memory.h"

using namespace jevons::emu;

namespace {

struct CopyArgs {
  void* to = nullptr;
  int64_t to_pitch = 0;
  const void* from = nullptr;
  int64_t from_pitch = 0;
  int64_t width = 0;
  int64_t height = 1;

  int64_t ToBytes() const { return (height - 1) * to_pitch + width; }
  int64_t FromBytes() const { return (height - 1) * from_pitch + width; }
};

Place FindPlace(const void* address) {
  const Allocation* const a = FindAllocation(address);
  return a == nullptr ? Place::kPageable : a->place();
}

bool Fits(cudaMemcpyKind kind, bool from_device, bool to_device) {
  switch (kind) {
    case cudaMemcpyHostToHost:
      return !from_device && !to_device;
    case cudaMemcpyHostToDevice:
      return !from_device && to_device;
    case cudaMemcpyDeviceToHost:
      return from_device && !to_device;
    case cudaMemcpyDeviceToDevice:
      return from_device && to_device;
    case cudaMemcpyDefault:
      return true;
  }
  return false;
}

// Whether the memory still is what it was when the copy was queued.
bool CheckRange(const void* address, int64_t bytes, Place place, const char* what) {
  if (FindPlace(address) == place && LiesWhole(address, bytes)) return true;
  ReportMisuse(std::string(what) + " of " + std::to_string(bytes) +
               " bytes reaches out of its allocation, or into memory that was freed");
  return false;
}

void CopyRows(const CopyArgs& args) {
  for (int64_t row = 0; row < args.height; ++row) {
    std::memmove(static_cast<char*>(args.to) + row * args.to_pitch,
                 static_cast<const char*>(args.from) + row * args.from_pitch, args.width);
  }
}

Work CopyWork(const CopyArgs& args, Place from, Place to) {
  return {"a copy", [=](int64_t) {
            if (!CheckRange(args.from, args.FromBytes(), from, "the source of a copy") ||
                !CheckRange(args.to, args.ToBytes(), to, "the destination of a copy")) {
              return cudaErrorIllegalAddress;
            }
            CopyRows(args);
            return cudaSuccess;
          }};
}

// A copy of pageable memory takes its bytes when it is called.
Work StagedCopyWork(CopyArgs args, Place to) {
  auto staged = std::make_shared<std::vector<char>>(args.width * args.height);
  CopyArgs in = args;
  in.to = staged->data();
  in.to_pitch = args.width;
  CopyRows(in);
  args.from = staged->data();
  args.from_pitch = args.width;
  return {"a copy", [args, to, staged](int64_t) {
            if (!CheckRange(args.to, args.ToBytes(), to, "the destination of a copy")) {
              return cudaErrorIllegalAddress;
            }
            CopyRows(args);
            return cudaSuccess;
          }};
}

enum class Wait { kNo, kYes };

cudaError_t WaitForStream(State& state, Lock& lock, const std::shared_ptr<Stream>& stream) {
  return RunUntilDone(state, lock, AddMark(state, stream));
}

// A call that waits: nothing of this thread may be under capture.
cudaError_t CheckBlocking(State& state, Wait wait) {
  if (wait == Wait::kNo) return cudaSuccess;
  const cudaError_t error = CheckDefaultStream(state, CurrentDevice());
  return error != cudaSuccess ? error : CheckUnsafeCall(state);
}

cudaError_t Copy(const CopyArgs& args, cudaMemcpyKind kind, cudaStream_t handle, Wait wait) {
  return ApiCall(CallKind::kCopy, [&](State& state, Lock& lock) {
    const std::shared_ptr<Stream> stream = FindStream(state, handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    const cudaError_t unsafe = CheckBlocking(state, wait);
    if (unsafe != cudaSuccess) return unsafe;
    if (args.width == 0 || args.height == 0) return cudaSuccess;
    if (args.height > 1 && (args.to_pitch < args.width || args.from_pitch < args.width)) {
      return cudaErrorInvalidPitchValue;
    }
    if (args.to == nullptr || args.from == nullptr) return cudaErrorInvalidValue;
    const Place from = FindPlace(args.from);
    const Place to = FindPlace(args.to);
    if (!Fits(kind, from == Place::kDevice, to == Place::kDevice)) return cudaErrorInvalidValue;
    if (!CheckRange(args.from, args.FromBytes(), from, "the source of a copy") ||
        !CheckRange(args.to, args.ToBytes(), to, "the destination of a copy")) {
      return cudaErrorInvalidValue;
    }
    const bool captured = stream->capture != nullptr;
    const bool staged = from == Place::kPageable && to == Place::kDevice && !captured;
    const cudaError_t error =
        Submit(state, handle, staged ? StagedCopyWork(args, to) : CopyWork(args, from, to));
    if (error != cudaSuccess || captured) return error;
    const bool waits = wait == Wait::kYes || to == Place::kPageable;
    return waits ? WaitForStream(state, lock, stream) : cudaSuccess;
  });
}

cudaError_t Fill(void* to, int value, int64_t bytes, cudaStream_t handle, Wait wait) {
  return ApiCall(CallKind::kCopy, [&](State& state, Lock& lock) {
    const std::shared_ptr<Stream> stream = FindStream(state, handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    const cudaError_t unsafe = CheckBlocking(state, wait);
    if (unsafe != cudaSuccess || bytes == 0) return unsafe;
    const Place place = FindPlace(to);
    if (place == Place::kPageable) return cudaErrorInvalidValue;
    const auto fits = [=] { return CheckRange(to, bytes, place, "a fill"); };
    if (!fits()) return cudaErrorInvalidValue;
    const cudaError_t error = Submit(state, handle, {"a fill", [=](int64_t) {
                                                       if (!fits()) return cudaErrorIllegalAddress;
                                                       std::memset(to, value, bytes);
                                                       return cudaSuccess;
                                                     }});
    if (error != cudaSuccess || wait == Wait::kNo) return error;
    return WaitForStream(state, lock, stream);
  });
}

CopyArgs Rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
              size_t height) {
  return {.to = to,
          .to_pitch = static_cast<int64_t>(to_pitch),
          .from = from,
          .from_pitch = static_cast<int64_t>(from_pitch),
          .width = static_cast<int64_t>(width),
          .height = static_cast<int64_t>(height)};
}

}  // namespace

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return Copy(Rows(to, bytes, from, bytes, bytes, 1), kind, nullptr, Wait::kYes);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return Copy(Rows(to, bytes, from, bytes, bytes, 1), kind, stream, Wait::kNo);
}

cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
  return Copy(Rows(to, to_pitch, from, from_pitch, width, height), kind, nullptr, Wait::kYes);
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  return Copy(Rows(to, to_pitch, from, from_pitch, width, height), kind, stream, Wait::kNo);
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return Fill(to, value, static_cast<int64_t>(bytes), nullptr, Wait::kYes);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return Fill(to, value, static_cast<int64_t>(bytes), stream, Wait::kNo);
}
