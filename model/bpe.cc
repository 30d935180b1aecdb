#include "model/bpe.h"

#include <algorithm>
#include <functional>

namespace jevons {
namespace {

// Below this the quadratic loop over an array beats the heap.
constexpr size_t kShortPiece = 48;

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(const ByteIds& byte_ids, std::span<const Merge> merges) : byte_ids_(byte_ids) {
  merges_.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const Merge& merge = merges[i];
    merges_[PairKey(merge.left, merge.right)] = {static_cast<uint32_t>(i), merge.result};
  }
}

Bpe::Ranked Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? Ranked{kNoMerge, 0} : it->second;
}

void Bpe::Encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (!whole_pieces_.empty()) {
    const auto it = whole_pieces_.find(absl::string_view(piece.data(), piece.size()));
    if (it != whole_pieces_.end()) {
      ids.push_back(it->second);
      return;
    }
  }
  if (piece.size() <= kShortPiece) {
    EncodeShort(piece, ids);
  } else {
    EncodeLong(piece, ids);
  }
}

void Bpe::EncodeShort(std::string_view piece, std::vector<int32_t>& ids) const {
  std::array<int32_t, kShortPiece> symbols;
  std::array<Ranked, kShortPiece> merges;  // merges[i] joins symbols i and i + 1
  size_t num_symbols = piece.size();
  for (size_t i = 0; i < num_symbols; ++i) symbols[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i + 1 < num_symbols; ++i) merges[i] = FindMerge(symbols[i], symbols[i + 1]);
  while (num_symbols > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < num_symbols; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoMerge) break;
    symbols[best] = merges[best].result;
    --num_symbols;
    for (size_t i = best + 1; i < num_symbols; ++i) symbols[i] = symbols[i + 1];
    for (size_t i = best + 1; i + 1 < num_symbols; ++i) merges[i] = merges[i + 1];
    if (best + 1 < num_symbols) merges[best] = FindMerge(symbols[best], symbols[best + 1]);
    if (best > 0) merges[best - 1] = FindMerge(symbols[best - 1], symbols[best]);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.begin() + static_cast<ptrdiff_t>(num_symbols));
}

void Bpe::EncodeLong(std::string_view piece, std::vector<int32_t>& ids) const {
  // A linked list of symbols; one that was merged into its left neighbour has the id -1.
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
  };
  const auto num_bytes = static_cast<int32_t>(piece.size());
  std::vector<Symbol> symbols(piece.size());
  for (int32_t i = 0; i < num_bytes; ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i - 1, i + 1};
  }
  // Candidates as rank << 32 | position of the left symbol, lowest first. An entry whose pair has
  // changed since is recognised by the pair's rank and left out.
  std::vector<uint64_t> heap;
  const auto candidate = [&](int32_t left) {
    const int32_t right = symbols[left].next;
    if (right == num_bytes) return Ranked{kNoMerge, 0};
    return FindMerge(symbols[left].id, symbols[right].id);
  };
  const auto key = [](uint32_t rank, int32_t left) {
    return uint64_t{rank} << 32 | static_cast<uint32_t>(left);
  };
  for (int32_t i = 0; i < num_bytes; ++i) {
    const uint32_t rank = candidate(i).rank;
    if (rank != kNoMerge) heap.push_back(key(rank, i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto push = [&](int32_t left) {
    const uint32_t rank = candidate(left).rank;
    if (rank == kNoMerge) return;
    heap.push_back(key(rank, left));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    const auto rank = static_cast<uint32_t>(heap.front() >> 32);
    const auto left = static_cast<int32_t>(heap.front() & 0xFFFFFFFF);
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    if (symbols[left].id < 0) continue;
    const Ranked merge = candidate(left);
    if (merge.rank != rank) continue;
    Symbol& right = symbols[symbols[left].next];
    symbols[left] = {merge.result, symbols[left].previous, right.next};
    right.id = -1;
    if (right.next != num_bytes) symbols[right.next].previous = left;
    push(left);
    if (symbols[left].previous >= 0) push(symbols[left].previous);
  }
  for (int32_t i = 0; i != num_bytes; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace jevons
