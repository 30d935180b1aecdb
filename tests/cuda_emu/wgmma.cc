// Products of a warpgroup (9.7.15). Each warp computes its 16 rows for itself, at the wait; until
// then the accumulator is NaN and the operands in shared memory may not change.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tests/cuda_emu/grid_state.h"

namespace jevons::emu {
namespace {

constexpr int kRows = 16;
constexpr int kMostDepth = 32;  // of e4m3; of bf16 half
constexpr int kWarpsPerGroup = 4;
constexpr int kMostColumns = 256;
constexpr const char* kName = "Wgmma";

float FromBf16(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

float FromE4m3(uint32_t byte) {
  if ((byte & 0x7F) == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>((byte & 0x80) << 24 | (byte & 0x7F) << 20) * 0x1p120f;
}

int DepthOf(const Wgmma& call) { return call.e4m3 ? kMostDepth : kMostDepth / 2; }

// The matrix descriptor, 9.7.15.5.1: a field of addresses counts 16 bytes.
struct Descriptor {
  int64_t start = 0;
  int64_t leading_bytes = 0;
  int64_t stride_bytes = 0;
  int64_t swizzle_bytes = 0;  // 0: none

  explicit Descriptor(uint64_t bits) {
    const auto address = [&](int shift) {
      return static_cast<int64_t>((bits >> shift & 0x3FFF) << 4);
    };
    start = address(0);
    leading_bytes = address(16);
    stride_bytes = address(32);
    constexpr int64_t kSwizzleBytes[4] = {0, 128, 64, 32};
    swizzle_bytes = kSwizzleBytes[bits >> 62];
    if ((bits >> 49 & 7) != 0) Misuse("a wgmma descriptor with a base offset: not emulated;");
  }

  // The shared address of element (i, k): i counts along M or N, k along K.
  int64_t Address(int i, int k, bool k_major) const {
    int64_t address = start;
    if (swizzle_bytes == 0) {
      // Tiles of 8 rows of 16 bytes.
      address += k_major ? i / 8 * stride_bytes + k / 8 * leading_bytes + i % 8 * 16 + k % 8 * 2
                         : i / 8 * stride_bytes + k / 8 * leading_bytes + k % 8 * 16 + i % 8 * 2;
      return address;
    }
    if (k_major) {
      address += i / 8 * stride_bytes + i % 8 * swizzle_bytes + k * 2;
    } else {
      const int width = static_cast<int>(swizzle_bytes / 2);
      address +=
          i / width * leading_bytes + i % width * 2 + k / 8 * stride_bytes + k % 8 * swizzle_bytes;
    }
    // The 16-byte pieces of each 128 bytes change places with the number of those 128 bytes.
    return address ^ ((address >> 7 & (swizzle_bytes / 16 - 1)) << 4);
  }
};

// One operand of a warp: rows first .. first + num along M or N, all of the depth along K.
struct Operand {
  Descriptor descriptor;
  bool k_major;
  int first;
  int num;
  bool e4m3;  // two lie in the place of a bf16; K-major

  // Calls visit(shared address, i, k) for each element, the eight of 16 bytes one after another.
  template <typename Visit>
  void ForElements(Visit visit) const {
    const int width = e4m3 ? 2 : 1;
    const int depth = kMostDepth / 2 * width;
    for (int outer = 0; outer < (k_major ? num : depth); ++outer) {
      for (int inner = 0; inner < (k_major ? depth : num); ++inner) {
        const int i = k_major ? outer : inner;
        const int k = k_major ? inner : outer;
        visit(descriptor.Address(first + i, k / width, k_major) + k % width, i, k);
      }
    }
  }
  // Calls visit(first byte) for each 16 bytes.
  template <typename Visit>
  void ForPieces(const Block& block, Visit visit) const {
    ForElements([&](int64_t address, int i, int k) {
      if ((k_major ? k : i) % (e4m3 ? 16 : 8) == 0)
        visit(block.smem + (address - kFirstSharedAddress));
    });
  }
};

Operand OperandB(const Wgmma& call) {
  return {Descriptor(call.b_descriptor), !call.transposed_b, 0, call.n, call.e4m3};
}
Operand OperandA(const Wgmma& call, const Warp& warp) {
  return {Descriptor(call.a_descriptor), true, warp.idx % kWarpsPerGroup * kRows, kRows, call.e4m3};
}

template <typename Visit>
void ForPiecesOf(const Wgmma& call, const Warp& warp, Visit visit) {
  OperandB(call).ForPieces(*warp.block, visit);
  if (call.a_shared) OperandA(call, warp).ForPieces(*warp.block, visit);
}

Block::Word* WordsOf(Block& block, const unsigned char* piece) {
  return &block.words[(piece - block.smem) / 4];
}

// Checks the operands in shared memory and marks them as read.
void BeginReading(const Wgmma& call, Warp& warp) {
  Block& block = *warp.block;
  ForPiecesOf(call, warp, [&](const unsigned char* piece) {
    CheckShared(piece, 16, 16, "an operand of a wgmma");
    Read(piece, 16, call.pc);
    for (int i = 0; i < 4; ++i) {
      const Block::Word& word = WordsOf(block, piece)[i];
      if (word.written) Misuse("a wgmma reads bytes that a copy under way writes;");
      if (word.writer != 0 && word.number > block.threads[word.writer - 1].num_fenced) {
        Misuse("a wgmma reads bytes of CpAsync by thread " + std::to_string(word.writer - 1) +
               ", which made no FenceProxyAsync after its wait;");
      }
    }
  });
  ForPiecesOf(call, warp, [&](const unsigned char* piece) {
    for (int i = 0; i < 4; ++i) ++WordsOf(block, piece)[i].readers;
  });
}

void EndReading(const Wgmma& call, Warp& warp) {
  ForPiecesOf(call, warp, [&](const unsigned char* piece) {
    Read(piece, 16, call.pc);
    for (int i = 0; i < 4; ++i) --WordsOf(*warp.block, piece)[i].readers;
  });
}

// The lane that holds d[row][column], and where.
struct Place {
  int lane;
  int idx;
};
Place PlaceOfD(int row, int column) {
  return {row % 8 * 4 + column % 8 / 2, column / 8 * 4 + row / 8 * 2 + column % 2};
}

float LoadBf16(const Block& block, int64_t shared_address) {
  uint16_t bits;
  CopyBytes(&bits, block.smem + (shared_address - kFirstSharedAddress), 2);
  return FromBf16(bits);
}

float LoadE4m3(const Block& block, int64_t shared_address) {
  return FromE4m3(block.smem[shared_address - kFirstSharedAddress]);
}

struct Matrices {
  float a[kRows][kMostDepth];
  float b[kMostDepth][kMostColumns];
  float d[kRows][kMostColumns];
};

void LoadOperands(const Wgmma& call, const Warp& warp, Matrices& m) {
  const Block& block = *warp.block;
  OperandB(call).ForElements([&](int64_t address, int i, int k) {
    m.b[k][i] = call.e4m3 ? LoadE4m3(block, address) : LoadBf16(block, address);
  });
  if (call.a_shared) {
    OperandA(call, warp).ForElements([&](int64_t address, int i, int k) {
      m.a[i][k] = LoadBf16(block, address);
    });
    return;
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < DepthOf(call); ++k) {
      if (call.e4m3) {
        const uint32_t four = call.a[row % 8 * 4 + k % 16 / 4][row / 8 + k / 16 * 2];
        m.a[row][k] = FromE4m3(four >> (8 * (k % 4)) & 0xFF);
        continue;
      }
      const uint32_t pair = call.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      m.a[row][k] = FromBf16(k % 2 == 0 ? pair & 0xFFFF : pair >> 16);
    }
  }
}

// Where a lane's result of the warp's product i goes: to the next product under way that adds to
// it, else to the thread.
float* ResultOf(const Warp& warp, int i, int lane) {
  for (int later = i + 1; later < warp.num_pending; ++later) {
    if (warp.wgmmas[later]->d[lane] == warp.wgmmas[i]->d[lane]) {
      return warp.wgmmas[later]->before[lane];
    }
  }
  return warp.wgmmas[i]->d[lane];
}

// The whole part, of less than 2^22: a conversion would not become vector code.
float WholePart(float value) {
  constexpr float kWhole = 0x1.8p23f;
  const float near = (value + kWhole) - kWhole;
  return std::abs(near) > std::abs(value) ? near - std::copysign(1.0f, value) : near;
}

// d[n] += the sum over k, as tensor cores of sm_90 add products of FP8: what is added, d among it, is
// cut off kFp8Bits below the highest bit of the largest (14 bits or so are kept: DeepSeek-V3's report,
// 3.3.2).
void AddE4m3(const float (&a)[kMostDepth], const float (&b)[kMostDepth][kMostColumns], int n,
             float (&d)[kMostColumns]) {
  constexpr uint32_t kFp8Bits = 13;
  float largest[kMostColumns];
  for (int j = 0; j < n; ++j) largest[j] = std::abs(d[j]);
  for (int k = 0; k < kMostDepth; ++k) {
    for (int j = 0; j < n; ++j) {
      const float size = std::abs(a[k] * b[k][j]);
      largest[j] = size > largest[j] ? size : largest[j];
    }
  }
  float units[kMostColumns];  // in one
  for (int j = 0; j < n; ++j) {
    const uint32_t exponent = std::bit_cast<uint32_t>(largest[j]) >> 23;
    units[j] = std::bit_cast<float>((254 + kFp8Bits - std::max(exponent, kFp8Bits + 1)) << 23);
  }
  for (int j = 0; j < n; ++j) d[j] = WholePart(d[j] * units[j]);
  for (int k = 0; k < kMostDepth; ++k) {
    for (int j = 0; j < n; ++j) d[j] += WholePart(a[k] * b[k][j] * units[j]);
  }
  for (int j = 0; j < n; ++j) d[j] /= units[j];
}

void Compute(const Warp& warp, int i) {
  static Matrices& m = *new Matrices;
  const Wgmma& call = *warp.wgmmas[i];
  LoadOperands(call, warp, m);
  if (!call.accumulate) FillBytes(m.d, 0, sizeof(m.d));
  for (int row = 0; row < kRows; ++row) {
    for (int n = 0; call.accumulate && n < call.n; ++n) {
      const Place place = PlaceOfD(row, n);
      m.d[row][n] = call.before[place.lane][place.idx];
    }
    if (call.e4m3) AddE4m3(m.a[row], m.b, call.n, m.d[row]);
    for (int k = 0; k < DepthOf(call) && !call.e4m3; ++k) {
      for (int n = 0; n < call.n; ++n) m.d[row][n] += m.a[row][k] * m.b[k][n];
    }
  }
  float* result[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = ResultOf(warp, i, lane);
  for (int row = 0; row < kRows; ++row) {
    for (int n = 0; n < call.n; ++n) {
      const Place place = PlaceOfD(row, n);
      CopyBytes(result[place.lane] + place.idx, &m.d[row][n], 4);
    }
  }
}

uint64_t Digest(const WgmmaArgs& args, Site at) {
  uint64_t digest = static_cast<uint64_t>(at.line);
  for (const uint64_t part :
       {args.a_descriptor, args.b_descriptor, static_cast<uint64_t>(args.n),
        static_cast<uint64_t>(args.e4m3) << 3 | static_cast<uint64_t>(args.a == nullptr) << 2 |
            static_cast<uint64_t>(args.accumulate) << 1 |
            static_cast<uint64_t>(args.transposed_b)}) {
    digest = (digest ^ part) * 0x9E3779B97F4A7C15u;
    digest ^= digest >> 29;
  }
  return digest;
}

// The warps of a warpgroup make the same calls in the same order.
void CheckWarpgroup(Warp& warp, uint64_t digest) {
  Block& block = *warp.block;
  const int group = warp.idx / kWarpsPerGroup;
  if (block.num_warps < (group + 1) * kWarpsPerGroup) {
    Misuse("wgmma in a warp without a whole warpgroup;");
  }
  const int64_t number = warp.num_wgmmas++;
  WgmmaCall& call = block.wgmma_calls[group][number % kKnownWgmmas];
  if (call.number < number) call = WgmmaCall{number, digest};
  if (call.number == number && call.digest != digest) {
    Misuse("the warps of a warpgroup differ in their wgmma number " + std::to_string(number) +
           " or in its operands;");
  }
}

}  // namespace

void WgmmaIssue(const WgmmaArgs& args, Site at) {
  Thread& thread = RunningThread();
  Warp& warp = *thread.warp;
  thread.at = at;
  // The warp's first lane makes the entry, each fills in its own registers.
  if (warp.arrived == 0) {
    if (warp.num_pending == kMostWgmmas) Misuse("too many wgmmas under way;");
    Wgmma*& entry = warp.wgmmas[warp.num_pending++];
    if (entry == nullptr) entry = new Wgmma;
    entry->n = args.n;
    entry->accumulate = args.accumulate;
    entry->transposed_b = args.transposed_b;
    entry->e4m3 = args.e4m3;
    entry->a_shared = args.a == nullptr;
    entry->a_descriptor = args.a_descriptor;
    entry->b_descriptor = args.b_descriptor;
    entry->group = warp.wgmma_group;
    entry->pc = __builtin_return_address(0);
  }
  Wgmma& call = *warp.wgmmas[warp.num_pending - 1];
  call.d[thread.lane] = args.d;
  CopyBytes(call.before[thread.lane], args.d, args.n / 2 * 4);
  if (args.a != nullptr) CopyBytes(call.a[thread.lane], args.a, 16);
  const uint64_t digest = Digest(args, at);
  if (MeetAll(kName, static_cast<int64_t>(digest), at)) {
    if (!warp.wgmma_fenced) Misuse("wgmma without a WgmmaFence before the first;");
    CheckWarpgroup(warp, digest);
    BeginReading(call, warp);
  }
  FillBytes(args.d, 0xFF, args.n / 2 * 4);
}

void WgmmaFence(Site at) {
  if (MeetAll("WgmmaFence", 0, at)) RunningThread().warp->wgmma_fenced = true;
}

void WgmmaCommit(Site at) {
  if (MeetAll("WgmmaCommit", 0, at)) ++RunningThread().warp->wgmma_group;
}

void WgmmaWait(int pending, Site at) {
  if (!MeetAll("WgmmaWait", pending, at)) return;
  Warp& warp = *RunningThread().warp;
  int num = 0;
  while (num < warp.num_pending && warp.wgmmas[num]->group < warp.wgmma_group - pending) {
    Compute(warp, num);
    EndReading(*warp.wgmmas[num], warp);
    ++num;
  }
  std::rotate(warp.wgmmas, warp.wgmmas + num, warp.wgmmas + warp.num_pending);
  warp.num_pending -= num;
}

void SetRegisters(int num, Site at) {
  if (MeetAll("SetRegisters", num, at)) RunningThread().warp->registers = num;
}

void EndWgmmaOfThread(Thread& thread) {
  const Warp& warp = *thread.warp;
  // While lanes wait in WgmmaIssue the last entry is not a call yet.
  const bool issuing = warp.arrived != 0 && warp.name == kName;
  if (warp.num_pending > (issuing ? 1 : 0)) {
    Misuse("the thread ends with a wgmma that it has not waited for;");
  }
}

std::string EndWgmmaOfBlock(const Block& block) {
  constexpr int kRegisters = 65536;  // of a multiprocessor
  int registers = 0;
  for (int i = 0; i < block.num_warps; ++i) {
    const Warp& first = block.warps[i / kWarpsPerGroup * kWarpsPerGroup];
    registers += block.warps[i].registers * kLanes;
    if (block.warps[i].registers != first.registers || registers > kRegisters) {
      return "warps " + std::to_string(first.idx) + " and " + std::to_string(i) +
             " of a warpgroup have " + std::to_string(first.registers) + " and " +
             std::to_string(block.warps[i].registers) + " registers a thread, and all so far " +
             std::to_string(registers) + " of " + std::to_string(kRegisters);
    }
    if (block.warps[i].num_wgmmas == first.num_wgmmas) continue;
    return "warps " + std::to_string(first.idx) + " and " + std::to_string(i) +
           " of a warpgroup made " + std::to_string(first.num_wgmmas) + " and " +
           std::to_string(block.warps[i].num_wgmmas) + " wgmmas";
  }
  return "";
}

}  // namespace jevons::emu
