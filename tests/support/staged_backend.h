// Runs ops of a backend with its own memory on tensors of the host: each call copies its arguments
// to the device, in the types that the device wants, and its results back.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "ops/backend.h"

namespace jevons {

// The tensors of one call. Float tensors go over as bf16 where the device wants that: exactly, or
// the test fails. Gaps between rows travel as 0xFF and must come back so.
class Stage {
 public:
  explicit Stage(Backend& device) : device_(device) {}

  TensorView In(const TensorView& host, DType dtype) { return Add(host, dtype, false); }
  TensorView In(const TensorView& host) { return Add(host, host.dtype, false); }
  TensorView Out(const TensorView& host, DType dtype) { return Add(host, dtype, true); }
  TensorView Out(const TensorView& host) { return Add(host, host.dtype, true); }

  // Copies back what was written.
  absl::Status Finish() {
    for (Entry& entry : entries_) {
      if (!entry.written) continue;
      std::vector<uint8_t> bytes(entry.bytes.size());
      RETURN_IF_ERROR(
          device_.Read(Flat(bytes.data(), bytes.size()), Flat(entry.buffer->data(), bytes.size())));
      const int64_t width = DTypeBytes(entry.dtype);
      std::vector<uint8_t> rest = bytes;
      ForEach(entry.host, [&](int64_t offset) {
        Convert(bytes.data() + offset * width, entry.dtype,
                entry.host.ptr<uint8_t>() + offset * DTypeBytes(entry.host.dtype),
                entry.host.dtype);
        std::memset(rest.data() + offset * width, 0xFF, static_cast<size_t>(width));
      });
      for (uint8_t byte : rest) {
        if (byte == 0xFF) continue;
        ADD_FAILURE() << "written between the rows of " << entry.host.ToString();
        break;
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Entry {
    TensorView host;
    DType dtype;
    std::vector<uint8_t> bytes;
    std::unique_ptr<Buffer> buffer;
    bool written = false;
  };

  static TensorView Flat(void* data, size_t size) {
    return TensorView(data, DType::kU8, {static_cast<int64_t>(size)});
  }

  template <typename Fn>
  static void ForEach(const TensorView& view, Fn fn) {
    for (int64_t i = 0; i < view.num_elements(); ++i) {
      int64_t index = i;
      int64_t offset = 0;
      for (int d = view.rank - 1; d >= 0; --d) {
        offset += index % view.shape[d] * view.stride[d];
        index /= view.shape[d];
      }
      fn(offset);
    }
  }

  static void Convert(const uint8_t* from, DType from_type, uint8_t* to, DType to_type) {
    if (from_type == to_type) {
      std::memcpy(to, from, static_cast<size_t>(DTypeBytes(to_type)));
      return;
    }
    if (to_type == DType::kBF16) {
      float value = 0;
      std::memcpy(&value, from, sizeof(value));
      const uint16_t bits = FloatToBf16(value);
      EXPECT_TRUE(Bf16ToFloat(bits) == value || std::isnan(value)) << value << " is no bf16";
      std::memcpy(to, &bits, sizeof(bits));
      return;
    }
    uint16_t bits = 0;
    std::memcpy(&bits, from, sizeof(bits));
    const float value = Bf16ToFloat(bits);
    std::memcpy(to, &value, sizeof(value));
  }

  TensorView Add(const TensorView& host, DType dtype, bool written) {
    if (!host.present() || host.num_elements() == 0) {
      TensorView view = host;
      view.dtype = dtype;
      return view;
    }
    for (Entry& entry : entries_) {
      if (entry.host.data != host.data) continue;
      entry.written |= written;
      return DeviceView(entry);
    }
    Entry entry = {.host = host, .dtype = dtype, .bytes = {}, .buffer = {}, .written = written};
    const int64_t width = DTypeBytes(dtype);
    int64_t extent = 1;
    for (int d = 0; d < host.rank; ++d) extent += (host.shape[d] - 1) * host.stride[d];
    entry.bytes.assign(static_cast<size_t>(extent * width), 0xFF);
    ForEach(host, [&](int64_t offset) {
      Convert(host.ptr<uint8_t>() + offset * DTypeBytes(host.dtype), host.dtype,
              entry.bytes.data() + offset * width, dtype);
    });
    auto buffer = device_.Allocate(static_cast<int64_t>(entry.bytes.size()));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    entry.buffer = *std::move(buffer);
    const absl::Status copied = device_.Write(Flat(entry.buffer->data(), entry.bytes.size()),
                                              Flat(entry.bytes.data(), entry.bytes.size()));
    EXPECT_TRUE(copied.ok()) << copied;
    entries_.push_back(std::move(entry));
    return DeviceView(entries_.back());
  }

  static TensorView DeviceView(const Entry& entry) {
    TensorView view = entry.host;
    view.dtype = entry.dtype;
    view.data = entry.buffer->data();
    return view;
  }

  Backend& device_;
  std::vector<Entry> entries_;
};

// Takes f32 arguments as the CPU does. `out` is the type in which the device writes what may be
// either.
class StagedBackend : public Backend {
 public:
  StagedBackend(std::unique_ptr<Backend> device, DType out)
      : device_(std::move(device)), act_(device_->traits().activation), out_(out) {}

  std::string Description() const override { return device_->Description(); }
  int64_t AvailableBytes() const override { return device_->AvailableBytes(); }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t) override { return NotHere(); }
  absl::StatusOr<DeviceTensor> Upload(const TensorView&) override { return NotHere(); }
  absl::Status Write(const TensorView&, const TensorView&) override { return NotHere(); }
  absl::Status Read(const TensorView&, const TensorView&) override { return NotHere(); }
  absl::StatusOr<std::unique_ptr<Weight>> PackWeight(const WeightSpec& spec) override {
    return device_->PackWeight(spec);
  }

  absl::Status Embed(const EmbedArgs& a) override {
    return Run([&](Stage& s) {
      return device_->Embed({s.In(a.ids), s.In(a.table), s.Out(a.out), s.In(a.drawn)});
    });
  }
  absl::Status RmsNorm(const RmsNormArgs& a) override {
    const DType out = a.out.data == a.x.data ? DType::kF32 : out_;
    return Run([&](Stage& s) {
      return device_->RmsNorm(
          {s.Out(a.x), s.In(a.delta), s.In(a.weight), a.eps, s.Out(a.out, out)});
    });
  }
  absl::Status SiluMul(const SiluMulArgs& a) override {
    return Run([&](Stage& s) { return device_->SiluMul({s.In(a.gate_up), s.Out(a.out, out_)}); });
  }
  absl::Status Rope(const RopeArgs& a) override {
    return Run([&](Stage& s) {
      return device_->Rope(
          {s.In(a.x, act_), s.In(a.positions), s.In(a.cos_sin), s.Out(a.out, act_)});
    });
  }
  absl::Status GatherRows(const GatherRowsArgs& a) override {
    return Run([&](Stage& s) {
      return device_->GatherRows({s.In(a.x, out_), s.In(a.row_idx), s.Out(a.out, out_)});
    });
  }
  absl::Status Linear(const LinearArgs& a) override {
    return Run([&](Stage& s) {
      return device_->Linear({s.In(a.x, act_), a.weight, s.In(a.bias), s.Out(a.out, out_)});
    });
  }
  absl::Status HeadLinear(const HeadLinearArgs& a) override {
    return Run([&](Stage& s) {
      return device_->HeadLinear({s.In(a.x, act_), a.weight, s.Out(a.out, out_)});
    });
  }
  absl::Status GroupedGemm(const GroupedGemmArgs& a) override {
    return Run([&](Stage& s) {
      return device_->GroupedGemm(
          {s.In(a.x, act_), s.In(a.cu_rows), s.In(a.row_idx), a.weight, s.Out(a.out, out_)});
    });
  }
  absl::Status GatedUp(const GatedUpArgs& a) override {
    return Run([&](Stage& s) {
      return device_->GatedUp(
          {s.In(a.x, act_), s.In(a.cu_rows), s.In(a.row_idx), a.weight, {}, s.Out(a.out, out_)});
    });
  }
  absl::Status MlaStoreKv(const MlaStoreKvArgs& a) override {
    return Run([&](Stage& s) { return device_->MlaStoreKv(Staged(s, a)); });
  }
  absl::Status MlaPrepare(const MlaPrepareArgs& a) override {
    return Run([&](Stage& s) {
      return device_->MlaPrepare({Staged(s, a.store), s.In(a.q, act_), a.uk, s.Out(a.out, out_)});
    });
  }
  absl::Status MlaAttention(const MlaAttentionArgs& a) override {
    return Run([&](Stage& s) { return device_->MlaAttention(Staged(s, a)); });
  }
  absl::Status MlaValues(const MlaValuesArgs& a) override {
    return Run([&](Stage& s) {
      return device_->MlaValues({Staged(s, a.attention), a.uv, s.Out(a.out, out_)});
    });
  }
  absl::Status RouteTopK(const RouteTopKArgs& a) override {
    return Run([&](Stage& s) {
      RouteTopKArgs b = a;
      b.logits = s.In(a.logits);
      b.bias = s.In(a.bias);
      b.num_rows = s.In(a.num_rows);
      b.topk_idx = s.Out(a.topk_idx);
      b.topk_weights = s.Out(a.topk_weights);
      return device_->RouteTopK(b);
    });
  }
  absl::Status ExpertDispatch(const ExpertDispatchArgs& a) override {
    return Run([&](Stage& s) {
      return device_->ExpertDispatch(
          {s.In(a.topk_idx),
           {s.Out(a.plan.cu_rows), s.Out(a.plan.row_token), s.Out(a.plan.token_row)}});
    });
  }
  absl::Status RouteAndDispatch(const RouteTopKArgs& a, const DispatchPlan& plan) override {
    return Run([&](Stage& s) {
      RouteTopKArgs b = a;
      b.logits = s.In(a.logits);
      b.bias = s.In(a.bias);
      b.num_rows = s.In(a.num_rows);
      b.topk_idx = s.Out(a.topk_idx);
      b.topk_weights = s.Out(a.topk_weights);
      return device_->RouteAndDispatch(
          b, {s.Out(plan.cu_rows), s.Out(plan.row_token), s.Out(plan.token_row)});
    });
  }
  absl::Status ExpertCombine(const ExpertCombineArgs& a) override {
    return Run([&](Stage& s) {
      return device_->ExpertCombine({s.In(a.expert_out, out_),
                                     {{}, {}, s.In(a.plan.token_row)},
                                     s.In(a.topk_weights),
                                     s.In(a.shared),
                                     s.Out(a.out, out_)});
    });
  }
  absl::Status NormAndRoute(const NormAndRouteArgs& a) override {
    return Run([&](Stage& s) { return device_->NormAndRoute(Staged(s, a)); });
  }
  absl::Status LinearAndRoute(const LinearAndRouteArgs& a) override {
    return Run([&](Stage& s) {
      const LinearArgs& linear = a.linear;
      return device_->LinearAndRoute(
          {.linear = {s.In(linear.x, act_), linear.weight, s.In(linear.bias), s.Out(linear.out)},
           .route = Staged(s, a.route)});
    });
  }
  absl::Status CombineAndNorm(const CombineAndNormArgs& a) override {
    return Run([&](Stage& s) { return device_->CombineAndNorm(End(s, a)); });
  }
  absl::Status FinishExperts(const GroupedGemmArgs& down, const CombineAndNormArgs& end) override {
    return Run([&](Stage& s) {
      const TensorView rows = s.Out(down.out, out_);
      return device_->FinishExperts(
          {s.In(down.x, act_), s.In(down.cu_rows), s.In(down.row_idx), down.weight, rows},
          End(s, end));
    });
  }
  absl::Status RankDispatch(const RankDispatchArgs& a) override {
    return Run([&](Stage& s) {
      RankDispatchArgs b = a;
      b.topk_idx = s.In(a.topk_idx);
      b.slot_table = s.In(a.slot_table);
      b.plan = {s.Out(a.plan.counts), s.Out(a.plan.send_token), s.Out(a.plan.send_slots),
                s.Out(a.plan.return_row)};
      b.choice_counts = s.Out(a.choice_counts);
      return device_->RankDispatch(b);
    });
  }
  absl::Status ReturnRows(const ReturnRowsArgs& a) override {
    return Run([&](Stage& s) {
      return device_->ReturnRows({s.In(a.token_row), a.masked, s.Out(a.row_idx)});
    });
  }
  absl::Status PackRows(const PackRowsArgs& a) override {
    return Run([&](Stage& s) {
      return device_->PackRows({s.In(a.x, act_), s.In(a.row_idx), s.Out(a.out)});
    });
  }
  absl::Status UnpackRows(const UnpackRowsArgs& a) override {
    return Run([&](Stage& s) { return device_->UnpackRows({s.In(a.x), s.Out(a.out, act_)}); });
  }
  absl::Status SampleTokens(const SampleTokensArgs& a) override {
    return Run([&](Stage& s) {
      const auto list = [&](const SampleList& l) {
        return SampleList{s.In(l.ids), s.In(l.values), s.In(l.cu)};
      };
      return device_->SampleTokens({s.Out(a.logits), a.num_valid, s.In(a.rows), list(a.bias),
                                    list(a.counts), s.In(a.masks), s.Out(a.list_scratch),
                                    s.Out(a.token), s.Out(a.logprob), s.Out(a.top_ids),
                                    s.Out(a.top_logprobs)});
    });
  }

 private:
  // Bytes are FP8 entries, everywhere the same.
  DType CacheType(const TensorView& cache) const {
    return cache.dtype == DType::kU8 ? DType::kU8 : device_->traits().kv_cache;
  }
  CombineAndNormArgs End(Stage& s, const CombineAndNormArgs& a) const {
    const TensorView sum = s.In(a.combine.out);
    return {
        .combine = {s.In(a.combine.expert_out, out_),
                    {{}, {}, s.In(a.combine.plan.token_row)},
                    s.In(a.combine.topk_weights),
                    s.In(a.combine.shared),
                    sum},
        .norm = {s.Out(a.norm.x), sum, s.In(a.norm.weight), a.norm.eps, s.Out(a.norm.out, out_)}};
  }
  NormAndRouteArgs Staged(Stage& s, const NormAndRouteArgs& a) const {
    NormAndRouteArgs b = a;
    b.norm = {s.Out(a.norm.x), s.In(a.norm.delta), s.In(a.norm.weight), a.norm.eps,
              s.Out(a.norm.out, act_)};
    b.route.logits = s.Out(a.route.logits);
    b.route.bias = s.In(a.route.bias);
    b.route.num_rows = s.In(a.route.num_rows);
    b.route.topk_idx = s.Out(a.route.topk_idx);
    b.route.topk_weights = s.Out(a.route.topk_weights);
    b.plan = {s.Out(a.plan.cu_rows), s.Out(a.plan.row_token), s.Out(a.plan.token_row)};
    return b;
  }
  MlaStoreKvArgs Staged(Stage& s, const MlaStoreKvArgs& a) const {
    return {s.In(a.kv, act_),
            s.In(a.norm_weight),
            a.eps,
            s.In(a.positions),
            s.In(a.cos_sin),
            s.In(a.slot_mapping),
            s.Out(a.cache, CacheType(a.cache))};
  }
  MlaAttentionArgs Staged(Stage& s, const MlaAttentionArgs& a) const {
    return {s.In(a.q, act_),      s.In(a.cache, CacheType(a.cache)),
            s.In(a.block_tables), s.In(a.cu_seqlens_q),
            s.In(a.context_lens), a.scale,
            s.Out(a.out, act_)};
  }
  static absl::Status NotHere() { return absl::UnimplementedError("a staged backend runs ops"); }

  template <typename Fn>
  absl::Status Run(Fn fn) {
    Stage stage(*device_);
    RETURN_IF_ERROR(fn(stage));
    return stage.Finish();
  }

  std::unique_ptr<Backend> device_;
  const DType act_;
  const DType out_;
};

}  // namespace jevons
