#include "bench/cuda_report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace jevons {
namespace {

std::string Quoted(const std::string& text) {
  return "\"" + absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"\"", "\\\""}, {"\n", " "}}) + "\"";
}

// Weights of the parts of a model.
struct Parts {
  double attention = 0;
  double expert = 0;
  double dense = 0;
  double router = 0;
  double head = 0;
  double layers = 0;
  double dense_layers = 0;
  double moe_layers = 0;
};

Parts PartsOf(const ModelConfig& c) {
  const double h = c.hidden_size;
  const double heads = c.num_attention_heads;
  const double q = heads * c.qk_head_dim();
  Parts p;
  p.attention =
      (c.q_lora_rank > 0 ? h * c.q_lora_rank + c.q_lora_rank * q : h * q) + h * c.kv_entry_dim() +
      heads * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim) + heads * c.v_head_dim * h;
  p.expert = 3 * h * c.moe_intermediate_size;
  p.dense = 3 * h * c.intermediate_size;
  p.router = h * c.n_routed_experts;
  p.head = h * c.vocab_size;
  p.layers = c.num_hidden_layers;
  p.dense_layers = c.n_routed_experts > 0 ? c.first_k_dense_replace : c.num_hidden_layers;
  p.moe_layers = p.layers - p.dense_layers;
  return p;
}

}  // namespace

Sample Summarize(std::vector<double> seconds) {
  Sample out;
  out.count = static_cast<int32_t>(seconds.size());
  if (seconds.empty()) return out;
  std::sort(seconds.begin(), seconds.end());
  out.median = seconds[seconds.size() / 2];
  out.low = seconds[seconds.size() / 4];
  out.high = seconds[seconds.size() * 3 / 4];
  return out;
}

CudaReport::CudaReport(const std::string& path) {
  if (path.empty()) return;
  file_ = std::fopen(path.c_str(), "w");
  if (file_ == nullptr) std::fprintf(stderr, "cannot write %s\n", path.c_str());
}

CudaReport::~CudaReport() {
  if (file_ != nullptr) std::fclose(file_);
}

void CudaReport::Line(const std::string& json) {
  std::fflush(stdout);
  if (file_ == nullptr) return;
  std::fprintf(file_, "{%s}\n", json.c_str());
  std::fflush(file_);
}

void CudaReport::Text(const std::string& name, const std::string& text) {
  std::printf("%-36s %s\n", name.c_str(), text.c_str());
  Line(absl::StrFormat("\"name\": %s, \"text\": %s", Quoted(name), Quoted(text)));
}

void CudaReport::Number(const std::string& name, double value, const std::string& unit,
                        const std::string& note) {
  std::printf("%-36s %10.2f %-8s %s\n", name.c_str(), value, unit.c_str(), note.c_str());
  Line(absl::StrFormat("\"name\": %s, \"value\": %.6g, \"unit\": %s%s", Quoted(name), value,
                       Quoted(unit), note.empty() ? "" : ", \"note\": " + Quoted(note)));
}

void CudaReport::Add(const BenchRow& row) {
  const double us = row.time.median * 1e6;
  const double spread = row.time.median > 0 ? (row.time.high - row.time.low) / row.time.median : 0;
  const double read = row.bytes / row.time.median;
  const double flops = row.flops / row.time.median;
  const double of_read = ceilings_.read > 0 ? read / ceilings_.read : 0;
  const double peak = ceilings_.flops(row.fp8);
  const double of_flops = peak > 0 ? flops / peak : 0;
  std::string peer;
  if (row.peer_us > 0) {
    peer = absl::StrFormat("%6.0f us %s (%.2fx)", row.peer_us, row.peer, row.peer_us / us);
  }
  std::printf("%-36s %10.1f us +-%4.1f %% %7.0f GB/s %5.1f %% %7.1f TF %5.1f %%  %s %s\n",
              row.name.c_str(), us, 50 * spread, read * 1e-9, 100 * of_read, flops * 1e-12,
              100 * of_flops, peer.c_str(), row.note.c_str());
  std::string json = absl::StrFormat(
      "\"name\": %s, \"value\": %.6g, \"unit\": \"us\", \"low\": %.6g, \"high\": %.6g, "
      "\"runs\": %d, \"bytes\": %.6g, \"flops\": %.6g, \"gb_per_second\": %.6g, "
      "\"tflop_per_second\": %.6g",
      Quoted(row.name), us, row.time.low * 1e6, row.time.high * 1e6, row.time.count, row.bytes,
      row.flops, read * 1e-9, flops * 1e-12);
  if (ceilings_.read > 0) {
    absl::StrAppendFormat(&json, ", \"of_read\": %.4f", of_read);
  }
  if (peak > 0) {
    absl::StrAppendFormat(&json, ", \"of_flops\": %.4f, \"fraction_of_limit\": %.4f", of_flops,
                          std::max(of_read, of_flops));
  }
  if (row.peer_us > 0) {
    absl::StrAppendFormat(&json, ", \"peer_us\": %.6g, \"peer\": %s", row.peer_us,
                          Quoted(row.peer));
  }
  if (!row.note.empty()) json += ", \"note\": " + Quoted(row.note);
  Line(json + row.detail);
}

void CudaReport::Failed(const std::string& name, const std::string& why) {
  ++num_failed_;
  std::printf("%-36s failed: %s\n", name.c_str(), why.c_str());
  Line(absl::StrFormat("\"name\": %s, \"error\": %s", Quoted(name), Quoted(why)));
}

DecodeLimit LimitOfDecode(const ModelConfig& config, int64_t batch, int64_t context, double experts,
                          double weight_bytes, double read, double flops) {
  const Parts p = PartsOf(config);
  const double b = static_cast<double>(batch);
  const double seen = b * static_cast<double>(context);
  const double score_flops =
      2.0 * config.num_attention_heads * (config.kv_entry_dim() + config.kv_lora_rank);
  const double k = config.num_experts_per_tok;
  const double shared = config.n_shared_experts;
  // Bytes and flops of each part.
  const double parts[][2] = {
      {p.layers * p.attention * weight_bytes, 2 * b * p.layers * p.attention},
      {p.layers * seen * 2 * config.kv_entry_dim(), p.layers * seen * score_flops},
      {p.dense_layers * p.dense * weight_bytes, 2 * b * p.dense_layers * p.dense},
      {p.moe_layers * experts * p.expert * weight_bytes, 2 * b * p.moe_layers * k * p.expert},
      {p.moe_layers * shared * p.expert * weight_bytes, 2 * b * p.moe_layers * shared * p.expert},
      {p.moe_layers * p.router * 2, 2 * b * p.moe_layers * p.router},
      {p.head * 2, 2 * b * p.head}};
  DecodeLimit out;
  for (const auto& part : parts) {
    out.bytes += part[0];
    out.seconds += std::max(read > 0 ? part[0] / read : 0, flops > 0 ? part[1] / flops : 0);
  }
  return out;
}

double FlopsOfPrefill(const ModelConfig& config, int64_t tokens) {
  const Parts p = PartsOf(config);
  const double t = static_cast<double>(tokens);
  const double experts = config.num_experts_per_tok + config.n_shared_experts;
  const double weights = p.layers * p.attention + p.dense_layers * p.dense +
                         p.moe_layers * (experts * p.expert + p.router);
  const double pairs = t * (t + 1) / 2;
  const double of_pair = config.num_attention_heads * (config.qk_head_dim() + config.v_head_dim);
  return 2 * t * weights + 2 * p.layers * pairs * of_pair + 2 * p.head;
}

}  // namespace jevons
