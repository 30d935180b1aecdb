#include "cpu/reference_ops.h"

#include <cmath>
#include <limits>

namespace jevons::reference {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double Dot(const float* w, const float* x, int64_t k) {
  double sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += static_cast<double>(w[i]) * x[i];
  return sum;
}

const PlainWeight& Plain(const Weight* weight) { return static_cast<const PlainWeight&>(*weight); }

// A row of x as products with the weight read it.
std::vector<float> InputRow(const PlainWeight& weight, const float* x) {
  std::vector<float> row(x, x + weight.k());
  if (weight.input() == ActivationPrecision::kFp8) {
    const Fp8Entry layout = {static_cast<int32_t>(weight.k()), 0};
    std::vector<uint8_t> entry(static_cast<size_t>(layout.bytes()));
    WriteFp8Entry(x, layout, entry.data());
    ReadFp8Entry(entry.data(), layout, row.data());
  }
  return row;
}

}  // namespace

float ReadElement(const TensorView& view, int64_t index) {
  switch (view.dtype) {
    case DType::kF32:
      return view.ptr<float>()[index];
    case DType::kF16:
      return F16ToFloat(view.ptr<uint16_t>()[index]);
    case DType::kBF16:
      return Bf16ToFloat(view.ptr<uint16_t>()[index]);
    case DType::kF8E4M3:
      return F8E4M3ToFloat(view.ptr<uint8_t>()[index]);
    default:
      return kNan;
  }
}

void Embed(const EmbedArgs& args) {
  const int64_t vocab = args.table.dim(0);
  const int64_t hidden = args.table.dim(1);
  for (int64_t t = 0; t < args.ids.dim(0); ++t) {
    int32_t id = args.ids.ptr<int32_t>()[t];
    if (args.drawn.present() && id < -1) {
      const int64_t drawn_idx = -int64_t{2} - id;
      id = drawn_idx < args.drawn.dim(0) ? args.drawn.ptr<int32_t>()[drawn_idx] : -1;
    }
    const bool known = id >= 0 && id < vocab;
    for (int64_t i = 0; i < hidden; ++i) {
      args.out.row<float>(t)[i] =
          known ? ReadElement(args.table, id * args.table.stride[0] + i) : kNan;
    }
  }
}

void RmsNormRow(const float* x, const float* weight, double eps, int64_t n, float* out) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const double root = std::sqrt(sum / static_cast<double>(n) + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i] / root * weight[i]);
}

void RmsNorm(const RmsNormArgs& args) {
  const int64_t hidden = args.x.dim(1);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    float* x = args.x.row<float>(t);
    if (args.delta.present()) {
      for (int64_t i = 0; i < hidden; ++i) x[i] += args.delta.row<float>(t)[i];
    }
    RmsNormRow(x, args.weight.ptr<float>(), args.eps, hidden, args.out.row<float>(t));
  }
}

void SiluMul(const SiluMulArgs& args) {
  const int64_t m = args.out.dim(1);
  for (int64_t t = 0; t < args.out.dim(0); ++t) {
    const float* row = args.gate_up.row<float>(t);
    for (int64_t i = 0; i < m; ++i) {
      const double z = row[i];
      args.out.row<float>(t)[i] = static_cast<float>(z / (1 + std::exp(-z)) * row[m + i]);
    }
  }
}

void RopeRow(const float* x, const float* cos_sin, int64_t d, float* out) {
  for (int64_t i = 0; i < d / 2; ++i) {
    const double a = x[2 * i];
    const double b = x[2 * i + 1];
    const double c = cos_sin[i];
    const double s = cos_sin[d / 2 + i];
    out[2 * i] = static_cast<float>(a * c - b * s);
    out[2 * i + 1] = static_cast<float>(a * s + b * c);
  }
}

void Rope(const RopeArgs& args) {
  const int64_t d = args.x.dim(2);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const float* cos_sin = args.cos_sin.row<float>(args.positions.ptr<int32_t>()[t]);
    for (int64_t h = 0; h < args.x.dim(1); ++h) {
      RopeRow(args.x.row<float>(t) + h * args.x.stride[1], cos_sin, d,
              args.out.row<float>(t) + h * args.out.stride[1]);
    }
  }
}

void GatherRows(const GatherRowsArgs& args) {
  for (int64_t i = 0; i < args.out.dim(0); ++i) {
    if (args.row_idx.ptr<int32_t>()[i] < 0) continue;
    const float* from = args.x.row<float>(args.row_idx.ptr<int32_t>()[i]);
    for (int64_t j = 0; j < args.out.dim(1); ++j) args.out.row<float>(i)[j] = from[j];
  }
}

void Linear(const LinearArgs& args) {
  const PlainWeight& weight = Plain(args.weight);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const std::vector<float> x = InputRow(weight, args.x.row<float>(t));
    for (int64_t i = 0; i < weight.n(); ++i) {
      const double bias = args.bias.present() ? args.bias.ptr<float>()[i] : 0.0;
      args.out.row<float>(t)[i] =
          static_cast<float>(Dot(weight.row(0, i), x.data(), weight.k()) + bias);
    }
  }
}

void HeadLinear(const HeadLinearArgs& args) {
  const PlainWeight& weight = Plain(args.weight);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t g = 0; g < weight.num_groups(); ++g) {
      const float* x = args.x.row<float>(t) + g * args.x.stride[1];
      float* out = args.out.row<float>(t) + g * args.out.stride[1];
      for (int64_t i = 0; i < weight.n(); ++i) {
        out[i] = static_cast<float>(Dot(weight.row(g, i), x, weight.k()));
      }
    }
  }
}

void GroupedGemm(const GroupedGemmArgs& args) {
  const PlainWeight& weight = Plain(args.weight);
  const int32_t* cu_rows = args.cu_rows.ptr<int32_t>();
  for (int64_t g = 0; g < weight.num_groups(); ++g) {
    for (int64_t r = cu_rows[g]; r < cu_rows[g + 1]; ++r) {
      const int64_t source = args.row_idx.present() ? args.row_idx.ptr<int32_t>()[r] : r;
      const std::vector<float> x = InputRow(weight, args.x.row<float>(source));
      for (int64_t i = 0; i < weight.n(); ++i) {
        args.out.row<float>(r)[i] = static_cast<float>(Dot(weight.row(g, i), x.data(), weight.k()));
      }
    }
  }
}

}  // namespace jevons::reference
