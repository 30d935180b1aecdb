// What a GPU bench says of itself: rows with times, bytes and shares of what the card did in the
// same run, as a table and as JSON lines.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "model/config.h"

namespace jevons {

// Times of one kind of call, in seconds.
struct Sample {
  double median = 0;
  double low = 0;  // quartiles
  double high = 0;
  int32_t count = 0;
};
Sample Summarize(std::vector<double> seconds);

// What the card does at best, measured in the same run. 0: not measured or not offered.
struct CudaCeilings {
  double read = 0;        // bytes a second
  double copy = 0;        // bytes read and bytes written a second
  double bf16 = 0;        // flops, cuBLASLt
  double fp8_blocks = 0;  // with a scale a block of 128
  double fp8_tensor = 0;  // with one scale a matrix
  double boundary = 0;    // seconds from kernel to kernel in a graph

  double flops(bool fp8) const { return fp8 && fp8_blocks > 0 ? fp8_blocks : bf16; }
};

struct BenchRow {
  std::string name;
  Sample time;
  double bytes = 0;    // that must be moved
  double flops = 0;    // that must be done
  bool fp8 = false;    // held against the FP8 ceiling
  double peer_us = 0;  // 0: no figure
  std::string peer;    // whose
  std::string note;
  std::string detail;  // more JSON members, each with a leading comma
};

// Used by one thread at a time.
class CudaReport {
 public:
  // "" writes no file.
  explicit CudaReport(const std::string& path);
  ~CudaReport();
  CudaReport(const CudaReport&) = delete;
  CudaReport& operator=(const CudaReport&) = delete;

  void set_ceilings(const CudaCeilings& ceilings) { ceilings_ = ceilings; }
  const CudaCeilings& ceilings() const { return ceilings_; }

  void Text(const std::string& name, const std::string& text);
  void Number(const std::string& name, double value, const std::string& unit,
              const std::string& note = "");
  void Add(const BenchRow& row);
  void Failed(const std::string& name, const std::string& why);
  int32_t num_failed() const { return num_failed_; }

 private:
  void Line(const std::string& json);

  std::FILE* file_ = nullptr;
  CudaCeilings ceilings_;
  int32_t num_failed_ = 0;
};

// The least time of a decode step by a card's read bandwidth and flops, part by part: attention's
// projections, its cache, dense layers, routed and shared experts, router, head. `experts`:
// distinct ones a layer, measured. `weight_bytes`, of one value; the head, router and cache are
// bf16.
struct DecodeLimit {
  double seconds = 0;
  double bytes = 0;
};
DecodeLimit LimitOfDecode(const ModelConfig& config, int64_t batch, int64_t context, double experts,
                          double weight_bytes, double read, double flops);

// Flops of a prompt with one row of logits, attention in the form with keys and values of each
// head: what any implementation must do.
double FlopsOfPrefill(const ModelConfig& config, int64_t tokens);

}  // namespace jevons
