// Finds the first of several stop strings in a text that comes in pieces.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace jevons {

// Thread-compatible. An Aho-Corasick automaton: work is proportional to the text, however many and
// long the strings.
class StopMatcher {
 public:
  // `stop_strings` are not empty, and well-formed UTF-8.
  explicit StopMatcher(std::span<const std::string> stop_strings);

  // What can be shown after this piece of whole characters. Held back is the longest end of the
  // text that begins a stop string. The match that ends first wins, of those that end together the
  // longest; nothing from its start on is ever shown. After a match everything is empty.
  std::string Push(std::string_view text);
  // What is held back, which no longer can become a match. The next piece begins a text of its own.
  std::string Flush();
  bool matched() const { return matched_; }

 private:
  struct Node {
    uint8_t byte = 0;
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t fail = 0;         // node of the longest proper end of this node's text
    int32_t num_bytes = 0;    // of this node's text
    int32_t match_bytes = 0;  // of the longest stop string that ends here; 0: none does
  };

  int32_t Child(int32_t node, uint8_t byte) const;
  void Insert(std::string_view stop_string);
  void LinkFailures();
  int32_t Next(int32_t node, uint8_t byte) const;

  std::vector<Node> nodes_;  // node 0 is the empty text
  int32_t state_ = 0;
  std::string held_;  // the text of state_
  bool matched_ = false;
};

}  // namespace jevons
