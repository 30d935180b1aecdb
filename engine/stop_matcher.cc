#include "engine/stop_matcher.h"

#include <utility>

namespace jevons {

StopMatcher::StopMatcher(std::span<const std::string> stop_strings) : nodes_(1) {
  for (const std::string& stop_string : stop_strings) Insert(stop_string);
  LinkFailures();
}

int32_t StopMatcher::Child(int32_t node, uint8_t byte) const {
  int32_t child = nodes_[node].first_child;
  while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].next_sibling;
  return child;
}

void StopMatcher::Insert(std::string_view stop_string) {
  int32_t node = 0;
  for (const char c : stop_string) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t child = Child(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      nodes_.push_back({.byte = byte,
                        .next_sibling = nodes_[node].first_child,
                        .num_bytes = nodes_[node].num_bytes + 1});
      nodes_[node].first_child = child;
    }
    node = child;
  }
  nodes_[node].match_bytes = nodes_[node].num_bytes;
}

void StopMatcher::LinkFailures() {
  std::vector<int32_t> order = {
      0};  // by rising num_bytes, so that a node's fail is complete before it
  for (size_t i = 0; i < order.size(); ++i) {
    const int32_t parent = order[i];
    for (int32_t node = nodes_[parent].first_child; node >= 0; node = nodes_[node].next_sibling) {
      order.push_back(node);
      if (parent == 0) continue;
      const int32_t fail = Next(nodes_[parent].fail, nodes_[node].byte);
      nodes_[node].fail = fail;
      if (nodes_[node].match_bytes == 0) nodes_[node].match_bytes = nodes_[fail].match_bytes;
    }
  }
}

int32_t StopMatcher::Next(int32_t node, uint8_t byte) const {
  while (true) {
    const int32_t child = Child(node, byte);
    if (child >= 0) return child;
    if (node == 0) return 0;
    node = nodes_[node].fail;
  }
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched_) return {};
  size_t i = held_.size();
  held_ += text;
  for (; i < held_.size(); ++i) {
    state_ = Next(state_, static_cast<uint8_t>(held_[i]));
    if (nodes_[state_].match_bytes == 0) continue;
    matched_ = true;
    held_.resize(i + 1 - static_cast<size_t>(nodes_[state_].match_bytes));
    return std::exchange(held_, {});
  }
  const size_t num_shown = held_.size() - static_cast<size_t>(nodes_[state_].num_bytes);
  std::string shown = held_.substr(0, num_shown);
  held_.erase(0, num_shown);
  return shown;
}

std::string StopMatcher::Flush() {
  state_ = 0;
  return std::exchange(held_, {});
}

}  // namespace jevons
