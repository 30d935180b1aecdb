#include "ops/arg_check.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "base/strings.h"

namespace jevons {
namespace {

std::string Describe(DType dtype, std::initializer_list<int64_t> shape) {
  std::string out = std::string(DTypeName(dtype)) + " [";
  const char* separator = "";
  for (int64_t size : shape) {
    absl::StrAppend(&out, separator, size == kAnySize ? "*" : absl::StrCat(size));
    separator = ", ";
  }
  return out + "]";
}

bool Matches(const TensorView& view, DType dtype, std::initializer_list<int64_t> shape) {
  if (view.dtype != dtype || view.rank != static_cast<int32_t>(shape.size())) return false;
  int i = 0;
  for (int64_t size : shape) {
    if (view.shape[i] < 0 || (size != kAnySize && view.shape[i] != size)) return false;
    ++i;
  }
  return true;
}

bool RowsOverlap(const TensorView& view) {
  int64_t inner = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    if (view.shape[i] > 1 && view.stride[i] < inner) return true;
    inner = view.shape[i] > 1 ? view.shape[i] * view.stride[i] : inner;
  }
  return false;
}

}  // namespace

void ArgCheck::Fail(std::string_view name, std::string_view wanted, std::string_view given) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(absl::StrCat(ToAbsl(op_), ": ", ToAbsl(name), " must be ",
                                                    ToAbsl(wanted), ", got ", ToAbsl(given)));
}

void ArgCheck::Tensor(std::string_view name, const TensorView& view, DType dtype,
                      std::initializer_list<int64_t> shape, Layout layout) {
  if (!ok()) return;
  if (view.rank == 0 && !view.present()) return Fail(name, Describe(dtype, shape), "nothing");
  if (!Matches(view, dtype, shape)) return Fail(name, Describe(dtype, shape), view.ToString());
  if (view.num_elements() == 0) return;
  if (!view.present()) return Fail(name, Describe(dtype, shape), "a null pointer");
  if (layout == Layout::kContiguous && !view.contiguous()) {
    Fail(name, "contiguous", absl::StrCat(view.ToString(), " with row stride ", view.stride[0]));
  }
}

void ArgCheck::OptionalTensor(std::string_view name, const TensorView& view, DType dtype,
                              std::initializer_list<int64_t> shape, Layout layout) {
  if (view.present()) Tensor(name, view, dtype, shape, layout);
}

void ArgCheck::Output(std::string_view name, const TensorView& view, DType dtype,
                      std::initializer_list<int64_t> shape) {
  Tensor(name, view, dtype, shape, Layout::kStrided);
  if (!ok() || view.num_elements() == 0 || !RowsOverlap(view)) return;
  Fail(name, "laid out without overlap",
       absl::StrCat(view.ToString(), " with row stride ", view.stride[0]));
}

void ArgCheck::InRange(std::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  if (!ok()) return;
  Fail(name, absl::StrCat("in [", low, ", ", high, "]"), absl::StrCat(value));
}

void ArgCheck::IndexInRange(std::string_view name, int64_t index, int64_t value, int64_t low,
                            int64_t high) {
  if (value >= low && value <= high) return;
  if (!ok()) return;
  Fail(absl::StrCat(ToAbsl(name), "[", index, "]"), absl::StrCat("in [", low, ", ", high, "]"),
       absl::StrCat(value));
}

void ArgCheck::Require(bool condition, std::string_view message) {
  if (condition || !ok()) return;
  status_ = absl::InvalidArgumentError(absl::StrCat(ToAbsl(op_), ": ", ToAbsl(message)));
}

}  // namespace jevons
