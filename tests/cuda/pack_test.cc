// The packing of weights against its twin on the host: equal bits, whatever the type, the order of
// the rows and the parts they come in.
#include "cuda/pack.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/tensor_view.h"
#include "tests/cuda/pack_host.h"
#include "tests/cuda_emu/tests/emu_test.h"

namespace jevons::cuda {
namespace {

struct PackCase {
  RawElement element;
  WeightFormat format;
  RowOrder order;
  std::vector<int32_t> parts;  // rows
  int32_t k;
};

std::string NameOf(const PackCase& c) {
  const char* const elements[] = {"f32", "f16", "bf16", "e4m3"};
  std::string name = elements[static_cast<int>(c.element)];
  name += c.format == WeightFormat::kE4m3 ? " kept" : " as bf16";
  if (c.order == RowOrder::kPaired) name += " paired";
  for (int32_t rows : c.parts) name += " " + std::to_string(rows);
  return name + " rows of " + std::to_string(c.k);
}

int ElementSize(RawElement element) {
  return element == RawElement::kF32 ? 4 : element == RawElement::kE4m3 ? 1 : 2;
}

// A part as a checkpoint has it.
struct Part {
  int32_t rows = 0;
  std::vector<uint8_t> data;
  std::vector<float> scale;  // e4m3 alone
};

// Any bits, but for the NaNs of e4m3, which a weight may not have.
Part MakePart(Random& random, RawElement element, int32_t rows, int32_t k) {
  Part part;
  part.rows = rows;
  part.data.resize(static_cast<size_t>(rows) * k * ElementSize(element));
  for (uint8_t& byte : part.data) {
    byte = static_cast<uint8_t>(random.Bits());
    if (element == RawElement::kE4m3 && (byte & 0x7F) == 0x7F) byte ^= 1;
  }
  if (element != RawElement::kE4m3) return part;
  const int32_t blocks = CeilDiv(rows, 128) * CeilDiv(k, 128);
  for (int32_t i = 0; i < blocks; ++i) {
    part.scale.push_back(static_cast<float>(0.001 + random.Uniform()));
  }
  return part;
}

float ScaleAt(const Part& part, int32_t k, int32_t i, int32_t c) {
  return part.scale[static_cast<size_t>(i / 128) * CeilDiv(k, 128) + c / 128];
}

float ValueAt(const Part& part, RawElement element, int32_t k, int32_t i, int32_t c) {
  const uint8_t* const at =
      part.data.data() + (static_cast<size_t>(i) * k + c) * ElementSize(element);
  uint16_t half = 0;
  float value = 0;
  if (element == RawElement::kE4m3) return F8E4M3ToFloat(*at) * ScaleAt(part, k, i, c);
  if (element == RawElement::kF32) {
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  std::memcpy(&half, at, sizeof(half));
  return element == RawElement::kF16 ? F16ToFloat(half) : Bf16ToFloat(half);
}

class PackTest : public emu::EmuTest {
 protected:
  struct Packed {
    std::vector<uint16_t> bf16;
    std::vector<uint8_t> e4m3;
    std::vector<float> scales;
  };

  static PackedLayout LayoutOf(const PackCase& c) {
    PackedLayout layout = {.format = c.format, .order = c.order, .n = 0, .k = c.k};
    for (int32_t rows : c.parts) layout.n += rows;
    return layout;
  }

  // The part that row i of the matrix comes from; `i` becomes its row there.
  static const Part& PartOf(const std::vector<Part>& parts, int32_t& i) {
    size_t at = 0;
    while (i >= parts[at].rows) i -= parts[at++].rows;
    return parts[at];
  }

  static Packed OnHost(const PackCase& c, const std::vector<Part>& parts) {
    const PackedLayout layout = LayoutOf(c);
    Packed out;
    if (c.format == WeightFormat::kBf16) {
      out.bf16 = PackOnHost<uint16_t>(layout, [&](int i, int column) {
        const Part& part = PartOf(parts, i);
        return FloatToBf16(ValueAt(part, c.element, c.k, i, column));
      });
      return out;
    }
    out.e4m3 = PackOnHost<uint8_t>(layout, [&](int i, int column) {
      const Part& part = PartOf(parts, i);
      return part.data[static_cast<size_t>(i) * c.k + column];
    });
    for (int32_t octet = 0; octet < PaddedRows(layout) / 8; ++octet) {
      const bool paired = c.order == RowOrder::kPaired;
      const int32_t in_half = octet / 2 * 8;
      const int32_t row = !paired                  ? octet * 8
                          : in_half < layout.n / 2 ? in_half + octet % 2 * (layout.n / 2)
                                                   : layout.n;
      int32_t i = row;
      const Part* const part = row < layout.n ? &PartOf(parts, i) : nullptr;
      for (int32_t block = 0; block < ScaleBlocks(layout); ++block) {
        out.scales.push_back(part == nullptr ? 0.0f : ScaleAt(*part, c.k, i, block * 128));
      }
    }
    return out;
  }

  // A copy in device memory; null for nothing.
  template <typename T>
  static T* ToDevice(const std::vector<T>& host) {
    void* data = nullptr;
    const size_t bytes = host.size() * sizeof(T);
    EXPECT_EQ(cudaMalloc(&data, bytes), cudaSuccess);
    if (bytes > 0) {
      EXPECT_EQ(cudaMemcpy(data, host.data(), bytes, cudaMemcpyHostToDevice), cudaSuccess);
    }
    return static_cast<T*>(data);
  }
  template <typename T>
  static void FromDevice(std::vector<T>& host, T* device) {
    EXPECT_EQ(cudaMemcpy(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    EXPECT_EQ(cudaFree(device), cudaSuccess);
  }

  // Packs the parts in pieces of `piece_rows`, a multiple of 128.
  static Packed OnDevice(const PackCase& c, const std::vector<Part>& parts, int32_t piece_rows) {
    const PackedLayout layout = LayoutOf(c);
    Packed out;
    if (c.format == WeightFormat::kBf16) {
      out.bf16.resize(PackedBytes(layout) / 2);
    } else {
      out.e4m3.resize(PackedBytes(layout));
      out.scales.resize(ScaleBytes(layout) / 4);
    }
    PackParams p;
    p.element = c.element;
    p.layout = layout;
    uint16_t* const bf16 = ToDevice(out.bf16);
    uint8_t* const e4m3 = ToDevice(out.e4m3);
    p.values = bf16 != nullptr ? static_cast<void*>(bf16) : e4m3;
    p.scales = ToDevice(out.scales);
    for (const Part& part : parts) {
      uint8_t* const data = ToDevice(part.data);
      float* const scale = ToDevice(part.scale);
      for (int32_t row = 0; row < part.rows; row += piece_rows) {
        p.data = data + static_cast<int64_t>(row) * c.k * ElementSize(c.element);
        if (scale != nullptr) p.scale = scale + row / 128 * CeilDiv(c.k, 128);
        p.rows = Min(piece_rows, part.rows - row);
        EXPECT_EQ(LaunchPack(p, nullptr), cudaSuccess);
        p.row_offset += p.rows;
      }
      EXPECT_EQ(cudaFree(data), cudaSuccess);
      EXPECT_EQ(cudaFree(scale), cudaSuccess);
    }
    FromDevice(out.bf16, bf16);
    FromDevice(out.e4m3, e4m3);
    FromDevice(out.scales, p.scales);
    return out;
  }

  void Check(const PackCase& c, int32_t piece_rows = 1 << 20) {
    SCOPED_TRACE(NameOf(c) + " in pieces of " + std::to_string(piece_rows));
    std::vector<Part> parts;
    for (int32_t rows : c.parts) parts.push_back(MakePart(random_, c.element, rows, c.k));
    const Packed want = OnHost(c, parts);
    const Packed got = OnDevice(c, parts, piece_rows);
    EXPECT_EQ(got.e4m3, want.e4m3);
    EXPECT_EQ(got.scales, want.scales);
    ASSERT_EQ(got.bf16.size(), want.bf16.size());
    for (size_t i = 0; i < got.bf16.size(); ++i) {
      const bool both_nan =
          std::isnan(Bf16ToFloat(got.bf16[i])) && std::isnan(Bf16ToFloat(want.bf16[i]));
      if (both_nan) continue;
      ASSERT_EQ(got.bf16[i], want.bf16[i]) << "element " << i;
    }
  }

  Random random_{20240611};
};

constexpr RawElement kElements[] = {RawElement::kF32, RawElement::kF16, RawElement::kBf16,
                                    RawElement::kE4m3};
const std::vector<int32_t> kPlainParts[] = {{1}, {17, 3}, {63}, {64}, {65}, {40, 24, 1}, {130, 5}};
const std::vector<int32_t> kPairedParts[] = {{1, 1}, {5, 5}, {31, 31}, {32, 32}, {33, 33}};
const int32_t kColumns[] = {1, 2, 15, 63, 64, 65, 130};

TEST_F(PackTest, EveryTypeInAnySizeIsThatOfTheTwin) {
  for (RawElement element : kElements) {
    for (int32_t k : kColumns) {
      for (const auto& parts : kPlainParts) {
        Check({element, WeightFormat::kBf16, RowOrder::kPlain, parts, k});
      }
      for (const auto& parts : kPairedParts) {
        Check({element, WeightFormat::kBf16, RowOrder::kPaired, parts, k});
      }
    }
  }
}

TEST_F(PackTest, E4m3IsKeptWithAScaleForEightRows) {
  const std::vector<int32_t> plain[] = {{1}, {8, 3}, {64}, {128, 16, 1}, {200, 72}};
  const std::vector<int32_t> paired[] = {{8, 8}, {24, 24}, {32, 32}, {136, 136}};
  for (int32_t k : kColumns) {
    for (const auto& parts : plain) {
      Check({RawElement::kE4m3, WeightFormat::kE4m3, RowOrder::kPlain, parts, k});
    }
    for (const auto& parts : paired) {
      Check({RawElement::kE4m3, WeightFormat::kE4m3, RowOrder::kPaired, parts, k});
    }
  }
}

TEST_F(PackTest, PiecesOfAPartGiveTheSame) {
  for (int32_t piece_rows : {128, 256}) {
    for (RawElement element : kElements) {
      Check({element, WeightFormat::kBf16, RowOrder::kPlain, {300, 129}, 70}, piece_rows);
      Check({element, WeightFormat::kBf16, RowOrder::kPaired, {300, 300}, 70}, piece_rows);
    }
    Check({RawElement::kE4m3, WeightFormat::kE4m3, RowOrder::kPlain, {304, 129}, 200}, piece_rows);
    Check({RawElement::kE4m3, WeightFormat::kE4m3, RowOrder::kPaired, {264, 264}, 200}, piece_rows);
  }
}

TEST_F(PackTest, MoreElementsThanThreadsAreAllPacked) {
  // 16384 blocks of 256 threads with a pair each, and a second round.
  Check({RawElement::kBf16, WeightFormat::kBf16, RowOrder::kPlain, {1030}, 8200});
}

TEST_F(PackTest, ValuesBeyondBf16BecomeInfinityAndNanStaysNan) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kLargest = std::numeric_limits<float>::max();
  const std::vector<float> values = {kLargest, -kLargest, kInfinity, NAN, 1.00390625f, -0.0f};
  Part part = {.rows = 1, .data = {}, .scale = {}};
  part.data.resize(values.size() * sizeof(float));
  std::memcpy(part.data.data(), values.data(), part.data.size());
  const PackCase c = {RawElement::kF32, WeightFormat::kBf16, RowOrder::kPlain, {1}, 6};
  const Packed got = OnDevice(c, {part}, 128);
  const PackedLayout layout = LayoutOf(c);
  const auto at = [&](int32_t column) { return got.bf16[PackedOffset(layout, 0, column)]; };
  EXPECT_EQ(at(0), 0x7F80);
  EXPECT_EQ(at(1), 0xFF80);
  EXPECT_EQ(at(2), 0x7F80);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(at(3))));
  EXPECT_EQ(at(4), 0x3F80);  // half way between two: to the even one
  EXPECT_EQ(at(5), 0x8000);
}

TEST_F(PackTest, E4m3IsKeptOnlyWhereEightRowsShareAScale) {
  const PackedLayout plain = {WeightFormat::kE4m3, RowOrder::kPlain, 100, 64};
  EXPECT_TRUE(PackKeepsE4m3(plain, 0));
  EXPECT_TRUE(PackKeepsE4m3(plain, 96));
  EXPECT_FALSE(PackKeepsE4m3(plain, 4));
  EXPECT_TRUE(PackKeepsE4m3({WeightFormat::kE4m3, RowOrder::kPaired, 48, 64}, 24));
  EXPECT_FALSE(PackKeepsE4m3({WeightFormat::kE4m3, RowOrder::kPaired, 40, 64}, 0));
  EXPECT_FALSE(PackKeepsE4m3({WeightFormat::kE4m3, RowOrder::kPaired, 40, 64}, 20));
}

TEST_F(PackTest, WhatCannotBeKeptIsRefused) {
  PackParams p;
  p.layout = {WeightFormat::kE4m3, RowOrder::kPlain, 64, 64};
  p.rows = 8;
  p.element = RawElement::kBf16;
  EXPECT_CUDA(cudaErrorInvalidValue, LaunchPack(p, nullptr));
  p.element = RawElement::kE4m3;
  p.row_offset = 4;
  EXPECT_CUDA(cudaErrorInvalidValue, LaunchPack(p, nullptr));
  p.row_offset = 8;
  p.layout.order = RowOrder::kPaired;
  p.layout.n = 40;
  EXPECT_CUDA(cudaErrorInvalidValue, LaunchPack(p, nullptr));
}

TEST_F(PackTest, NoRowsAreASuccess) {
  EXPECT_CUDA(cudaSuccess, LaunchPack({}, nullptr));
  EXPECT_CUDA(cudaSuccess, LaunchUnpack({}, nullptr));
}

TEST_F(PackTest, UnpackedRowsAreThoseOfTheMatrixWithZerosBehind) {
  // The last has more tiles than there are warps in a grid of 2048 blocks.
  for (const auto& [n, k] : {std::pair{1, 1}, {16, 64}, {65, 130}, {200, 70}, {3000, 1456}}) {
    SCOPED_TRACE(std::to_string(n) + " x " + std::to_string(k));
    const PackedLayout layout = {.n = n, .k = k};
    const auto at = [&](int i, int c) { return static_cast<uint16_t>(i * 7919 + c * 31 + 1); };
    UnpackParams p;
    p.layout = layout;
    uint16_t* const packed = ToDevice(PackOnHost<uint16_t>(layout, at));
    p.values = packed;
    const int32_t all = PaddedRows(layout);
    // All rows, and those behind the first strip.
    for (p.first_row = 0; p.first_row <= kStripRows; p.first_row += kStripRows) {
      p.rows = all - p.first_row;
      std::vector<uint16_t> got(static_cast<size_t>(p.rows) * PaddedColumns(layout), 0xFFFF);
      uint16_t* const out = ToDevice(got);
      p.out = out;
      EXPECT_CUDA(cudaSuccess, LaunchUnpack(p, nullptr));
      FromDevice(got, out);
      for (size_t i = 0; i < got.size(); ++i) {
        const int row = p.first_row + static_cast<int>(i) / PaddedColumns(layout);
        const int column = static_cast<int>(i) % PaddedColumns(layout);
        ASSERT_EQ(got[i], row < n && column < k ? at(row, column) : 0) << row << " " << column;
      }
    }
    CUDA_OK(cudaFree(packed));
  }
}

TEST_F(PackTest, WhatCannotBeUnpackedIsRefused) {
  const UnpackParams good = {.layout = {.n = 60, .k = 64}, .first_row = 16, .rows = 48};
  UnpackParams p = good;
  p.rows = 64;
  EXPECT_CUDA(cudaErrorInvalidValue, LaunchUnpack(p, nullptr));
  p.rows = 40;
  EXPECT_CUDA(cudaErrorInvalidValue, LaunchUnpack(p, nullptr));
  p = good;
  p.first_row = 8;
  EXPECT_CUDA(cudaErrorInvalidValue, LaunchUnpack(p, nullptr));
  p = good;
  p.layout.format = WeightFormat::kE4m3;
  EXPECT_CUDA(cudaErrorInvalidValue, LaunchUnpack(p, nullptr));
  p = good;
  p.layout.order = RowOrder::kPaired;
  EXPECT_CUDA(cudaErrorInvalidValue, LaunchUnpack(p, nullptr));
}

}  // namespace
}  // namespace jevons::cuda
