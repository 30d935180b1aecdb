#include "cpu/gemm_kernels.h"

#include <algorithm>
#include <array>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/gemm_kernels.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "cpu/unroll.h"

HWY_BEFORE_NAMESPACE();
namespace jevons::fast::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr D d;
constexpr int kLanes = static_cast<int>(HWY_MAX_BYTES / sizeof(float));
constexpr int kVectors = static_cast<int>(kPanelOutputs) / kLanes;  // of a panel

// Rows of a tile: rows * vectors accumulators with the weights and one x fit the registers; up to
// kDirectRows also where the weights are converted on the way.
#if HWY_TARGET <= HWY_AVX3
constexpr int kTileRows = 12;
constexpr int kDirectRows = 12;
#elif HWY_TARGET <= HWY_AVX2
constexpr int kTileRows = 3;
constexpr int kDirectRows = 2;
#else
constexpr int kTileRows = 1;
constexpr int kDirectRows = 1;
#endif
static_assert(kTileRows <= kMaxTileRows);

// Row tiles that meet a block of weights while their x stays in the second cache: 384 KiB.
constexpr int64_t kRowsPerPass = 384;
// How far ahead of its use a weight is fetched.
constexpr int64_t kPrefetchBytes = 8192;
constexpr int64_t kNever = INT64_MAX;
// Inputs of a panel that are loaded, or converted, and used together.
constexpr int64_t kLoadBlock = 4 * kSumBlock;

HWY_INLINE void Prefetch(const uint8_t* p) { __builtin_prefetch(p, 0, 3); }

// Readers of one panel, one for each format: Load gives the weights of input i. A block that
// meets more rows a tile than kMaxRows, or more tiles than kTilesToConvert, is converted once.
struct F32Reader {
  static constexpr int64_t kBytes = kPanelOutputs * 4;
  static constexpr int64_t kMaxRows = kTileRows;
  static constexpr int64_t kTilesToConvert = kNever;
  F32Reader(const uint8_t* panel, const float*) : panel(reinterpret_cast<const float*>(panel)) {}
  HWY_INLINE void Load(int64_t i, V (&w)[kVectors]) const {
    JEVONS_UNROLL
    for (int v = 0; v < kVectors; ++v) w[v] = hn::Load(d, panel + i * kPanelOutputs + v * kLanes);
  }
  const float* panel;
};

struct Bf16Reader {
  static constexpr int64_t kBytes = kPanelOutputs * 2;
  static constexpr int64_t kMaxRows = kDirectRows;
  static constexpr int64_t kTilesToConvert = 4;
  Bf16Reader(const uint8_t* panel, const float*)
      : panel(reinterpret_cast<const uint32_t*>(panel)) {}
  HWY_INLINE void Load(int64_t i, V (&w)[kVectors]) const {
    const hn::RebindToUnsigned<D> du;
    constexpr int kHalf = kVectors / 2;
    JEVONS_UNROLL
    for (int v = 0; v < kHalf; ++v) {
      const auto words = hn::Load(du, panel + i * (kPanelOutputs / 2) + v * kLanes);
      w[v] = hn::BitCast(d, hn::ShiftLeft<16>(words));
      w[v + kHalf] = hn::BitCast(d, hn::And(words, hn::Set(du, 0xFFFF0000u)));
    }
  }
  const uint32_t* panel;
};

struct F16Reader {
  static constexpr int64_t kBytes = kPanelOutputs * 2;
  static constexpr int64_t kMaxRows = kDirectRows;
  static constexpr int64_t kTilesToConvert = 2;
  F16Reader(const uint8_t* panel, const float*)
      : panel(reinterpret_cast<const hwy::float16_t*>(panel)) {}
  HWY_INLINE void Load(int64_t i, V (&w)[kVectors]) const {
    const hn::Rebind<hwy::float16_t, D> dh;
    JEVONS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      w[v] = hn::PromoteTo(d, hn::Load(dh, panel + i * kPanelOutputs + v * kLanes));
#if HWY_TARGET > HWY_AVX2
      // Without an instruction for it the exponent of infinity and NaN is taken as any other.
      const auto special = hn::Ge(hn::Abs(w[v]), hn::Set(d, 65536.0f));
      w[v] = hn::IfThenElse(special, hn::Or(w[v], hn::Inf(d)), w[v]);
#endif
    }
  }
  const hwy::float16_t* panel;
};

struct F8Reader {
  static constexpr int64_t kBytes = kPanelOutputs;
  static constexpr int64_t kMaxRows = kDirectRows;
  static constexpr int64_t kTilesToConvert = 2;
  F8Reader(const uint8_t* panel, const float* scales)
      : panel(reinterpret_cast<const int8_t*>(panel)), scales(scales) {}
  HWY_INLINE void Load(int64_t i, V (&w)[kVectors]) const {
    const hn::Rebind<int8_t, D> d8;
    const hn::Rebind<int16_t, D> d16;
    const hn::Rebind<hwy::float16_t, D> dh;
    const V scale = hn::Set(d, scales[i / kF8ScaleInputs]);
    JEVONS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const auto bytes = hn::Load(d8, panel + i * kPanelOutputs + v * kLanes);
      // The shift brings the sign's copy to bit 15 and the sign itself to bit 14, where the mask
      // clears it.
      const auto moved = hn::ShiftLeft<7>(hn::PromoteTo(d16, bytes));
      const auto half = hn::And(moved, hn::Set(d16, static_cast<int16_t>(0xBFFF)));
      w[v] = hn::Mul(hn::PromoteTo(d, hn::BitCast(dh, half)), scale);
    }
  }
  const int8_t* panel;
  const float* scales;
};

// One block of inputs for a tile of rows and one panel.
struct BlockArgs {
  const uint8_t* weights = nullptr;  // of the block
  const float* scales = nullptr;     // of the block, kF8 only
  const float* x = nullptr;          // [num_k, rows]
  int64_t first_input = 0;
  int64_t num_k = 0;
  const uint8_t* prefetch = nullptr;  // fetched in steps while the sum runs; need not be ours
  int64_t prefetch_step = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t num_outputs = 0;      // of the panel, from out on
  bool first = false;           // the block begins the total
  const float* bias = nullptr;  // to add after the last block
};

// out = or += the sums of one panel's row, of which only some outputs are there.
HWY_INLINE void AddSome(const V (&sum)[kVectors], int64_t num_outputs, bool first,
                        const float* bias, float* out) {
  alignas(64) float values[kPanelOutputs];
  for (int v = 0; v < kVectors; ++v) hn::Store(sum[v], d, values + v * kLanes);
  for (int64_t j = 0; j < num_outputs; ++j) {
    const float total = first ? values[j] : out[j] + values[j];
    out[j] = bias != nullptr ? total + bias[j] : total;
  }
}

HWY_INLINE void AddAll(const V (&sum)[kVectors], bool first, const float* bias, float* out) {
  JEVONS_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    V total = first ? sum[v] : hn::Add(hn::LoadU(d, out + v * kLanes), sum[v]);
    if (bias != nullptr) total = hn::Add(total, hn::LoadU(d, bias + v * kLanes));
    hn::StoreU(total, d, out + v * kLanes);
  }
}

// The inputs [begin, end) of the block, which are one chain of the sum.
template <class Reader, int kRows>
HWY_INLINE void SumChain(const BlockArgs& args, const Reader& reader, int64_t begin, int64_t end) {
  V sum[kRows][kVectors];
  JEVONS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    JEVONS_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  const float* HWY_RESTRICT x = args.x;
  const uint8_t* prefetch = args.prefetch + begin * args.prefetch_step;
  for (int64_t i = begin; i < end; ++i) {
    Prefetch(prefetch);
    prefetch += args.prefetch_step;
    V w[kVectors];
    reader.Load(i, w);
    JEVONS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const V scale = hn::Set(d, x[i * kRows + r]);
      JEVONS_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(scale, w[v], sum[r][v]);
    }
  }
  const bool first = args.first && begin == 0;
  const float* bias = end == args.num_k ? args.bias : nullptr;
  JEVONS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    float* out = args.out + r * args.out_stride;
    if (args.num_outputs >= kPanelOutputs) {
      AddAll(sum[r], first, bias, out);
    } else {
      AddSome(sum[r], args.num_outputs, first, bias, out);
    }
  }
}

template <class Reader, int kRows>
void SumBlock(const BlockArgs& args) {
  const Reader reader(args.weights, args.scales);
  for (int64_t begin = 0; begin < args.num_k; begin += kSumBlock) {
    SumChain<Reader, kRows>(args, reader, begin, std::min(begin + kSumBlock, args.num_k));
  }
}

using BlockFn = void (*)(const BlockArgs&);
using BlockTable = std::array<BlockFn, kTileRows>;

// Entry r - 1 is for r rows.
template <class Reader, int... kIndex>
constexpr BlockTable MakeTable(std::integer_sequence<int, kIndex...>) {
  return {SumBlock<Reader, kIndex + 1>...};
}
template <class Reader>
constexpr BlockTable kTable = MakeTable<Reader>(std::make_integer_sequence<int, kTileRows>());

// The args of a block for any rows: x and out are those of the first.
BlockArgs BlockOf(const PanelProduct& product, int64_t panel, int64_t begin, int64_t k_bytes) {
  BlockArgs args;
  args.weights = product.weights + (panel * product.k + begin) * k_bytes;
  args.scales = product.scales;
  if (product.scales != nullptr) {
    const int64_t panel_scales = (product.k + kF8ScaleInputs - 1) / kF8ScaleInputs;
    args.scales += panel * panel_scales + begin / kF8ScaleInputs;
  }
  args.x = product.x;
  args.first_input = begin;
  args.num_k = std::min(kLoadBlock, product.k - begin);
  args.out = product.out + panel * kPanelOutputs;
  args.out_stride = product.out_stride;
  args.num_outputs = product.n - panel * kPanelOutputs;
  args.first = begin == 0;
  const bool last = begin + args.num_k == product.k;
  args.bias = last && product.bias != nullptr ? product.bias + panel * kPanelOutputs : nullptr;
  return args;
}

// One tile: the weights stream by once and are converted on the way.
template <class Reader>
void RunOneTile(const PanelProduct& product, int64_t begin, int64_t end) {
  const int64_t rows = product.num_rows;
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t i = 0; i < product.k; i += kLoadBlock) {
      BlockArgs args = BlockOf(product, panel, i, Reader::kBytes);
      args.x += i * rows;
      args.prefetch = args.weights + kPrefetchBytes;
      args.prefetch_step = Reader::kBytes;
      kTable<Reader>[rows - 1](args);
    }
  }
}

// The weights of a block as floats, which F32Reader reads.
template <class Reader>
HWY_INLINE void Convert(const BlockArgs& args, float* floats) {
  const Reader reader(args.weights, args.scales);
  for (int64_t i = 0; i < args.num_k; ++i) {
    V w[kVectors];
    reader.Load(i, w);
    JEVONS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      hn::Store(w[v], d, floats + i * kPanelOutputs + v * kLanes);
    }
  }
}

// The tiles [begin, end) against one block. While the first runs, the block at `next` is fetched;
// later the next tile's x.
void RunBlock(const PanelProduct& product, const RowTiles& tiles, int64_t begin, int64_t end,
              const uint8_t* next, int64_t next_step, const BlockTable& table, BlockArgs args) {
  float* out = args.out;
  const float* x = args.x;
  args.prefetch = next;
  args.prefetch_step = next_step;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t rows = tiles.Count(tile);
    args.x = x + tiles.Begin(tile) * product.k + args.first_input * rows;
    args.out = out + tiles.Begin(tile) * product.out_stride;
    if (tile > begin) {
      args.prefetch = reinterpret_cast<const uint8_t*>(args.x + product.k * rows);
      args.prefetch_step = rows * 4;
    }
    table[rows - 1](args);
  }
}

// Many tiles: each block of weights meets all rows of a pass while it is in the cache.
template <class Reader>
void RunTiles(const PanelProduct& product, int64_t begin, int64_t end) {
  alignas(64) float floats[kLoadBlock * kPanelOutputs];
  const RowTiles tiles(product.num_rows, kTileRows);
  const bool convert = tiles.num_tiles > Reader::kTilesToConvert ||
                       tiles.Count(tiles.num_tiles - 1) > Reader::kMaxRows;
  constexpr int64_t kPass = kRowsPerPass / kTileRows;
  for (int64_t pass = 0; pass < tiles.num_tiles; pass += kPass) {
    const int64_t pass_end = std::min(pass + kPass, tiles.num_tiles);
    for (int64_t i = 0; i < product.k; i += kLoadBlock) {
      for (int64_t panel = begin; panel < end; ++panel) {
        BlockArgs args = BlockOf(product, panel, i, Reader::kBytes);
        const int64_t panel_bytes = product.k * Reader::kBytes;
        const uint8_t* next = panel + 1 < end ? args.weights + panel_bytes
                                              : args.weights - (panel - begin) * panel_bytes +
                                                    kLoadBlock * Reader::kBytes;
        if (convert) {
          Convert<Reader>(args, floats);
          args.weights = reinterpret_cast<const uint8_t*>(floats);
        }
        RunBlock(product, tiles, pass, pass_end, next, Reader::kBytes,
                 convert ? kTable<F32Reader> : kTable<Reader>, args);
      }
    }
  }
}

template <class Reader>
void RunPanelsOf(const PanelProduct& product, int64_t begin, int64_t end) {
  if (product.num_rows <= Reader::kMaxRows) {
    RunOneTile<Reader>(product, begin, end);
  } else {
    RunTiles<Reader>(product, begin, end);
  }
}

void RunPanels(const PanelProduct& product, int64_t begin, int64_t end) {
  switch (product.format) {
    case WeightFormat::kF32:
      return RunPanelsOf<F32Reader>(product, begin, end);
    case WeightFormat::kF16:
      return RunPanelsOf<F16Reader>(product, begin, end);
    case WeightFormat::kBF16:
      return RunPanelsOf<Bf16Reader>(product, begin, end);
    case WeightFormat::kF8:
      return RunPanelsOf<F8Reader>(product, begin, end);
  }
}

// Four rows at a time are turned over in registers; the last four overlap those before.
void PackTile(const float* const* rows, int64_t num_rows, int64_t k, float* out) {
  int64_t i = 0;
  if (num_rows >= 4) {
    const hn::FixedTag<float, 4> d4;
    const hn::Repartition<double, decltype(d4)> d2;
    for (; i + 4 <= k; i += 4) {
      for (int64_t group = 0; group < num_rows; group += 4) {
        const int64_t r = std::min(group, num_rows - 4);
        const auto a = hn::LoadU(d4, rows[r] + i);
        const auto b = hn::LoadU(d4, rows[r + 1] + i);
        const auto c = hn::LoadU(d4, rows[r + 2] + i);
        const auto e = hn::LoadU(d4, rows[r + 3] + i);
        const auto ab_low = hn::BitCast(d2, hn::InterleaveLower(d4, a, b));
        const auto ab_high = hn::BitCast(d2, hn::InterleaveUpper(d4, a, b));
        const auto ce_low = hn::BitCast(d2, hn::InterleaveLower(d4, c, e));
        const auto ce_high = hn::BitCast(d2, hn::InterleaveUpper(d4, c, e));
        float* to = out + i * num_rows + r;
        hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, ab_low, ce_low)), d4, to);
        hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, ab_low, ce_low)), d4, to + num_rows);
        hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, ab_high, ce_high)), d4,
                   to + 2 * num_rows);
        hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, ab_high, ce_high)), d4,
                   to + 3 * num_rows);
      }
    }
  }
  for (; i < k; ++i) {
    for (int64_t r = 0; r < num_rows; ++r) out[i * num_rows + r] = rows[r][i];
  }
}

GemmKernels Kernels() { return {kTileRows, PackTile, RunPanels}; }

}  // namespace jevons::fast::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace jevons::fast {

HWY_EXPORT(Kernels);
GemmKernels GetGemmKernels() { return HWY_DYNAMIC_DISPATCH(Kernels)(); }

}  // namespace jevons::fast
#endif
