// The tensors of a checkpoint folder, memory-mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/tensor_view.h"

namespace jevons {

// What a file says of one tensor, whether or not we can compute with it.
struct TensorInfo {
  std::string dtype;  // as safetensors spells it, e.g. BF16
  std::vector<int64_t> shape;
  int64_t bytes = 0;
  std::string file;  // name inside the folder; empty if there is none
};

// Thread-safe once open. The views live as long as the checkpoint.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // Opens `folder`: model.safetensors.index.json decides which file holds a tensor where it is
  // there, and files beside it are ignored; else model.safetensors alone; else all *.safetensors of
  // the folder. Reads headers only. Errors name file and tensor: NOT_FOUND for a missing shard or
  // no file at all, INVALID_ARGUMENT for a corrupt header, bytes outside the file or used twice, a
  // size that does not fit dtype and shape, an unknown dtype, a name twice, an index entry that its
  // file lacks. The files must not shrink while the checkpoint lives.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& folder);

  // The tensor: contiguous, read only (a write faults). Its data may be misaligned for its dtype,
  // because the format lets a header have any length: read elements by memcpy. NOT_FOUND with the
  // name; UNIMPLEMENTED for a dtype that we do not compute with or more than four dimensions.
  virtual absl::StatusOr<TensorView> Find(std::string_view name) const = 0;
  virtual bool Has(std::string_view name) const = 0;
  // What the file says, for any dtype; NOT_FOUND as Find. Without files: what Find says.
  virtual absl::StatusOr<TensorInfo> Info(std::string_view name) const;
  // All names, sorted.
  virtual std::vector<std::string> Names() const = 0;
  // Reads the tensor into memory, so that it is there when it is wanted; does what it can, and waits
  // for it.
  virtual void Fetch(std::string_view name) const {}
  // Lets the system take back the memory that reading this tensor has filled; it may be read again.
  virtual void Release(std::string_view name) const = 0;
};

// Element `index` of a contiguous tensor of f32, bf16, f16 or f8_e4m3, wherever it lies.
float LoadValue(const TensorView& tensor, int64_t index);

}  // namespace jevons
