// Requests whose answers are known byte by byte before anything goes wrong.
#pragma once

#include <string>
#include <vector>

#include "tests/e2e/demo_server.h"

namespace jevons {

struct Canary {
  v1::GenerateRequest request;
  Generation want;
};

// A folder with a small random model of 16 experts and a tokenizer of bytes. `seed` draws the
// weights.
void WriteChaosModel(const std::string& folder, uint64_t seed);

// Requests of all kinds: prompts of one token and of several chunks, greedy and drawn, with stop
// strings, log-probabilities, filters. `seed` draws them.
std::vector<v1::GenerateRequest> CanaryRequests(uint64_t seed, int count);
// One that needs every block of a cache of `kv_cache_tokens`: it ends only where all are free.
v1::GenerateRequest FillRequest(int kv_cache_tokens);

// Answers the requests by one rank alone, `flags` beside those of the group. An error where one is
// not answered.
absl::StatusOr<std::vector<Canary>> AnswerAlone(const std::vector<std::string>& argv,
                                                const std::vector<v1::GenerateRequest>& requests);

// What differs in a whole answer; empty if nothing does.
std::string DifferenceOf(const Generation& got, const Generation& want);
// The same for an answer that was cut: what came must be the beginning of what is wanted.
std::string DifferenceOfCut(const Generation& got, const Generation& want);

}  // namespace jevons
