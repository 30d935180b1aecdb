// Collects the checks of one op's arguments and keeps the first that fails. Free of allocation
// where all is well.
#pragma once

#include <initializer_list>
#include <string_view>

#include "base/status.h"
#include "base/tensor_view.h"
#include "ops/validate.h"

namespace jevons {

inline constexpr int64_t kAnySize = -1;

// How the elements may lie. The last stride is 1 in each case.
enum class Layout { kContiguous, kStrided };

// Thread-compatible. `op` must outlive it.
class ArgCheck {
 public:
  explicit ArgCheck(std::string_view op) : op_(op) {}

  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }

  // The argument is there, of this type and shape (kAnySize takes any), and laid out as said. A
  // view without elements may have no data.
  void Tensor(std::string_view name, const TensorView& view, DType dtype,
              std::initializer_list<int64_t> shape, Layout layout = Layout::kContiguous);
  // The same, for an argument that may be left out.
  void OptionalTensor(std::string_view name, const TensorView& view, DType dtype,
                      std::initializer_list<int64_t> shape, Layout layout = Layout::kContiguous);
  // Rows that are written must not overlap.
  void Output(std::string_view name, const TensorView& view, DType dtype,
              std::initializer_list<int64_t> shape);

  // "op: name[index] must be in [low, high], got value"
  void InRange(std::string_view name, int64_t value, int64_t low, int64_t high);
  void IndexInRange(std::string_view name, int64_t index, int64_t value, int64_t low, int64_t high);
  // "op: message"
  void Require(bool condition, std::string_view message);

 private:
  void Fail(std::string_view name, std::string_view wanted, std::string_view given);

  std::string_view op_;
  absl::Status status_;
};

// Sizes of a view that may have the wrong rank; the shape check that follows reports it.
inline int64_t Dim(const TensorView& view, int i) { return i < view.rank ? view.shape[i] : 0; }

// What `view` may be as an activation: the rule's type where it is that, else f32.
inline DType FloatType(const TensorView& view, const ArgRules& rules) {
  return view.dtype == rules.activation ? rules.activation : DType::kF32;
}

}  // namespace jevons
