#include "cpu/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/functional/function_ref.h"
#include "cpu/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/rows.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace jevons::fast::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<float>;
using One = hn::CappedTag<float, 1>;

// Calls fn(tag, i) for i over [0, n), whole vectors first, then single floats.
template <typename Fn>
HWY_INLINE void ForEachVector(int64_t n, const Fn& fn) {
  const Tag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) fn(d, i);
  for (; i < n; ++i) fn(One(), i);
}

void AddRow(const float* delta, int64_t n, float* x) {
  ForEachVector(n, [=](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, delta + i)), d, x + i);
  });
}

// Four chains of vectors, then their lanes, then the rest: an order that n alone decides.
HWY_INLINE float SumOfSquares(const float* x, int64_t n) {
  const Tag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  auto sum2 = hn::Zero(d);
  auto sum3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto x0 = hn::LoadU(d, x + i);
    const auto x1 = hn::LoadU(d, x + i + lanes);
    const auto x2 = hn::LoadU(d, x + i + 2 * lanes);
    const auto x3 = hn::LoadU(d, x + i + 3 * lanes);
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
    sum2 = hn::MulAdd(x2, x2, sum2);
    sum3 = hn::MulAdd(x3, x3, sum3);
  }
  for (; i + lanes <= n; i += lanes) {
    const auto x0 = hn::LoadU(d, x + i);
    sum0 = hn::MulAdd(x0, x0, sum0);
  }
  const auto sum = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) total += x[i] * x[i];
  return total;
}

void NormRow(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const float mean = SumOfSquares(x, n) / static_cast<float>(n);
  const float factor = 1.0f / std::sqrt(mean + eps);
  ForEachVector(n, [=](auto d, int64_t i) HWY_ATTR {
    const auto scaled = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, factor));
    hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + i)), d, out + i);
  });
}

void SiluMulRow(const float* gate, const float* up, int64_t m, float* out) {
  ForEachVector(m, [=](auto d, int64_t i) HWY_ATTR {
    const auto z = hn::LoadU(d, gate + i);
    // exp(-|z|) cannot overflow, where exp(-z) can.
    const auto e = hn::Exp(d, hn::Neg(hn::Abs(z)));
    const auto one = hn::Set(d, 1.0f);
    const auto top = hn::IfThenElse(hn::Lt(z, hn::Zero(d)), hn::Mul(z, e), z);
    const auto silu = hn::Div(top, hn::Add(one, e));
    hn::StoreU(hn::Mul(silu, hn::LoadU(d, up + i)), d, out + i);
  });
}

void RotateRow(const float* x, const float* cos_sin, int64_t width, float* out) {
  const Tag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t pairs = width / 2;
  const float* sin = cos_sin + pairs;
  int64_t i = 0;
  for (; i + lanes <= pairs; i += lanes) {
    hn::Vec<Tag> a;
    hn::Vec<Tag> b;
    hn::LoadInterleaved2(d, x + 2 * i, a, b);
    const auto c = hn::LoadU(d, cos_sin + i);
    const auto s = hn::LoadU(d, sin + i);
    const auto first = hn::Sub(hn::Mul(a, c), hn::Mul(b, s));
    const auto second = hn::Add(hn::Mul(a, s), hn::Mul(b, c));
    hn::StoreInterleaved2(first, second, d, out + 2 * i);
  }
  for (; i < pairs; ++i) {
    const float a = x[2 * i];
    const float b = x[2 * i + 1];
    out[2 * i] = a * cos_sin[i] - b * sin[i];
    out[2 * i + 1] = a * sin[i] + b * cos_sin[i];
  }
}

void WidenBf16Row(const uint16_t* from, int64_t n, float* out) {
  ForEachVector(n, [=](auto d, int64_t i) HWY_ATTR {
    const hn::Rebind<uint16_t, decltype(d)> d16;
    const hn::Rebind<uint32_t, decltype(d)> d32;
    const auto wide = hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, from + i)));
    hn::StoreU(hn::BitCast(d, wide), d, out + i);
  });
}

// out = sum of weights[j] * row j over the rows that are there, then + shared.
void CombineRow(const ExpertCombineArgs& args, int64_t t) {
  const int64_t top_k = args.topk_weights.dim(1);
  const int32_t* rows = args.plan.token_row.row<int32_t>(t);
  const float* weights = args.topk_weights.row<float>(t);
  const float* shared = args.shared.present() ? args.shared.row<float>(t) : nullptr;
  const float* expert_out = args.expert_out.ptr<float>();
  const int64_t stride = args.expert_out.stride[0];
  float* out = args.out.row<float>(t);
  ForEachVector(args.out.dim(1), [=](auto d, int64_t i) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (int64_t j = 0; j < top_k; ++j) {
      if (rows[j] < 0) continue;
      sum =
          hn::MulAdd(hn::Set(d, weights[j]), hn::LoadU(d, expert_out + rows[j] * stride + i), sum);
    }
    if (shared != nullptr) sum = hn::Add(sum, hn::LoadU(d, shared + i));
    hn::StoreU(sum, d, out + i);
  });
}

}  // namespace jevons::fast::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace jevons::fast {
namespace {

HWY_EXPORT(AddRow);
HWY_EXPORT(NormRow);
HWY_EXPORT(SiluMulRow);
HWY_EXPORT(RotateRow);
HWY_EXPORT(WidenBf16Row);
HWY_EXPORT(CombineRow);

// Floats that make a task worth handing to another thread.
constexpr int64_t kTaskFloats = 16384;

// fn(row) for each row, in tasks of neighbouring rows.
void ParallelRows(ThreadPool& pool, int64_t num_rows, int64_t floats_per_row,
                  absl::FunctionRef<void(int64_t row)> fn) {
  const int64_t rows_per_task =
      std::max(int64_t{1}, kTaskFloats / std::max(int64_t{1}, floats_per_row));
  const int64_t num_tasks = (num_rows + rows_per_task - 1) / rows_per_task;
  const auto run = [&](int64_t task, int) {
    const int64_t end = std::min(num_rows, (task + 1) * rows_per_task);
    for (int64_t row = task * rows_per_task; row < end; ++row) fn(row);
  };
  if (num_tasks == 1) return run(0, 0);
  pool.ParallelFor(num_tasks, run);
}

void CopyFloats(const float* from, int64_t n, float* to) {
  if (n > 0) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

int32_t EmbeddedId(const EmbedArgs& args, int64_t t) {
  const int32_t id = args.ids.ptr<int32_t>()[t];
  if (id >= -1 || !args.drawn.present()) return id;
  const int64_t drawn_idx = int64_t{DrawnId(0)} - id;
  return drawn_idx < args.drawn.dim(0) ? args.drawn.ptr<int32_t>()[drawn_idx] : -1;
}

void EmbedRow(const EmbedArgs& args, int64_t t) {
  const int64_t hidden = args.table.dim(1);
  const int32_t id = EmbeddedId(args, t);
  float* out = args.out.row<float>(t);
  if (id < 0 || id >= args.table.dim(0)) {
    std::fill_n(out, hidden, std::numeric_limits<float>::quiet_NaN());
  } else if (args.table.dtype == DType::kF32) {
    CopyFloats(args.table.row<float>(id), hidden, out);
  } else if (args.table.dtype == DType::kBF16) {
    HWY_DYNAMIC_DISPATCH(WidenBf16Row)(args.table.row<uint16_t>(id), hidden, out);
  } else {
    const uint16_t* from = args.table.row<uint16_t>(id);
    for (int64_t i = 0; i < hidden; ++i) out[i] = F16ToFloat(from[i]);
  }
}

}  // namespace

void Embed(const EmbedArgs& args, ThreadPool& pool) {
  ParallelRows(pool, args.out.dim(0), args.out.dim(1), [&](int64_t t) { EmbedRow(args, t); });
}

void RmsNorm(const RmsNormArgs& args, ThreadPool& pool) {
  const int64_t hidden = args.x.dim(1);
  ParallelRows(pool, args.x.dim(0), hidden, [&](int64_t t) {
    float* x = args.x.row<float>(t);
    if (args.delta.present()) {
      HWY_DYNAMIC_DISPATCH(AddRow)(args.delta.row<float>(t), hidden, x);
    }
    HWY_DYNAMIC_DISPATCH(NormRow)
    (x, args.weight.ptr<float>(), args.eps, hidden, args.out.row<float>(t));
  });
}

void SiluMul(const SiluMulArgs& args, ThreadPool& pool) {
  const int64_t m = args.out.dim(1);
  ParallelRows(pool, args.out.dim(0), 2 * m, [&](int64_t t) {
    const float* gate = args.gate_up.row<float>(t);
    HWY_DYNAMIC_DISPATCH(SiluMulRow)(gate, gate + m, m, args.out.row<float>(t));
  });
}

void Rope(const RopeArgs& args, ThreadPool& pool) {
  const int64_t num_heads = args.x.dim(1);
  const int64_t width = args.x.dim(2);
  ParallelRows(pool, args.x.dim(0), num_heads * width, [&](int64_t t) {
    const float* cos_sin = args.cos_sin.row<float>(args.positions.ptr<int32_t>()[t]);
    for (int64_t h = 0; h < num_heads; ++h) {
      HWY_DYNAMIC_DISPATCH(RotateRow)
      (args.x.row<float>(t) + h * args.x.stride[1], cos_sin, width,
       args.out.row<float>(t) + h * args.out.stride[1]);
    }
  });
}

void GatherRows(const GatherRowsArgs& args, ThreadPool& pool) {
  ParallelRows(pool, args.out.dim(0), args.out.dim(1), [&](int64_t i) {
    const int32_t row = args.row_idx.ptr<int32_t>()[i];
    if (row >= 0) CopyFloats(args.x.row<float>(row), args.out.dim(1), args.out.row<float>(i));
  });
}

void PackRows(const PackRowsArgs& args, ThreadPool& pool) {
  const Fp8Entry layout = {static_cast<int32_t>(args.x.dim(1)), 0};
  const std::vector<float> none(static_cast<size_t>(layout.r));
  ParallelRows(pool, args.out.dim(0), args.x.dim(1), [&](int64_t i) {
    const int32_t token = args.row_idx.ptr<int32_t>()[i];
    WriteFp8Entry(token < 0 ? none.data() : args.x.row<float>(token), layout,
                  args.out.row<uint8_t>(i));
  });
}

void UnpackRows(const UnpackRowsArgs& args, ThreadPool& pool) {
  const Fp8Entry layout = {static_cast<int32_t>(args.out.dim(1)), 0};
  ParallelRows(pool, args.out.dim(0), args.out.dim(1), [&](int64_t i) {
    ReadFp8Entry(args.x.row<uint8_t>(i), layout, args.out.row<float>(i));
  });
}

void MlaStoreKv(const MlaStoreKvArgs& args, ThreadPool& pool) {
  const int64_t width = args.kv.dim(1);
  const int64_t r = args.norm_weight.dim(0);
  const Fp8Entry layout = {static_cast<int32_t>(r), static_cast<int32_t>(width - r)};
  const bool fp8 = args.cache.dtype == DType::kU8;
  ParallelRows(pool, args.kv.dim(0), width, [&](int64_t t) {
    thread_local Scratch scratch;
    const float* kv = args.kv.row<float>(t);
    const int64_t at = args.slot_mapping.ptr<int64_t>()[t] * args.cache.dim(2);
    float* values = fp8 ? scratch.Get(width) : args.cache.ptr<float>() + at;
    HWY_DYNAMIC_DISPATCH(NormRow)(kv, args.norm_weight.ptr<float>(), args.eps, r, values);
    HWY_DYNAMIC_DISPATCH(RotateRow)
    (kv + r, args.cos_sin.row<float>(args.positions.ptr<int32_t>()[t]), width - r, values + r);
    if (fp8) WriteFp8Entry(values, layout, args.cache.ptr<uint8_t>() + at);
  });
}

void ExpertCombine(const ExpertCombineArgs& args, ThreadPool& pool) {
  ParallelRows(pool, args.out.dim(0), args.out.dim(1) * (args.topk_weights.dim(1) + 1),
               [&](int64_t t) {
                 HWY_DYNAMIC_DISPATCH(CombineRow)
                 (args, t);
               });
}

}  // namespace jevons::fast
#endif
