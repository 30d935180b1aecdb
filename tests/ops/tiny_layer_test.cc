// Whole layers of tiny DeepSeek models against published numbers, and the other published vectors
// of single steps.
#include <algorithm>

#include "cpu/reference_mla.h"
#include "model/config.h"
#include "nlohmann/json.hpp"
#include "tests/support/op_test.h"
#include "tests/support/test_data.h"

namespace jevons {
namespace {

using Json = nlohmann::json;

// A JSON array of numbers or of rows.
TestTensor FromJson(const Json& json) {
  if (!json[0].is_array()) {
    TestTensor out(DType::kF32, {static_cast<int64_t>(json.size())});
    out.Fill(json.get<std::vector<float>>());
    return out;
  }
  TestTensor out(DType::kF32,
                 {static_cast<int64_t>(json.size()), static_cast<int64_t>(json[0].size())});
  std::vector<float> values;
  for (const Json& row : json) {
    for (const Json& value : row) values.push_back(value.get<float>());
  }
  out.Fill(values);
  return out;
}

// Within 1e-5 of the largest expected value.
void ExpectMatches(const TestTensor& got, const Json& json) {
  const TestTensor want = FromJson(json);
  double largest = 0;
  for (int64_t i = 0; i < want.size(); ++i) largest = std::max(largest, std::abs(want.Value(i)));
  ExpectWithin(got, want, [largest](int64_t, double) { return 1e-5 * largest; });
}

ModelConfig ReadConfig(const Json& json) {
  ModelConfig config;
  config.hidden_size = json["hidden_size"];
  config.num_attention_heads = json["num_attention_heads"];
  config.qk_nope_head_dim = json["qk_nope_head_dim"];
  config.qk_rope_head_dim = json["qk_rope_head_dim"];
  config.v_head_dim = json["v_head_dim"];
  config.kv_lora_rank = json["kv_lora_rank"];
  config.rope_theta = json["rope_theta"];
  config.rms_norm_eps = json["rms_norm_eps"];
  config.moe_intermediate_size = json["moe_intermediate_size"];
  config.scoring_func = json["scoring_func"];
  config.topk_method = json["topk_method"];
  config.n_routed_experts = json["n_routed_experts"];
  config.n_group = json["n_group"];
  config.topk_group = json["topk_group"];
  config.num_experts_per_tok = json["num_experts_per_tok"];
  config.norm_topk_prob = json["norm_topk_prob"];
  config.routed_scaling_factor = json["routed_scaling_factor"];
  const Json& scaling = json["rope_scaling"];
  config.rope_scaling = {true,
                         scaling["factor"],
                         scaling["original_max_position_embeddings"],
                         scaling["beta_fast"],
                         scaling["beta_slow"],
                         scaling["mscale"],
                         scaling["mscale_all_dim"]};
  return config;
}

// Runs one layer on a backend, every matrix as f32.
class TinyLayer {
 public:
  TinyLayer(const Json& data, Backend& backend)
      : data_(data),
        weights_(data["weights"]),
        c_(ReadConfig(data["config"])),
        backend_(backend),
        num_tokens_(static_cast<int64_t>(data["hidden_in"].size())) {
    table_ = TestTensor(DType::kF32, {num_tokens_, c_.qk_rope_head_dim});
    table_.Fill(RopeTable(c_, static_cast<int32_t>(num_tokens_)));
    positions_ = TestTensor(DType::kI32, {num_tokens_});
    positions_.Fill(data["positions"].get<std::vector<int32_t>>());
  }

  void CheckAll() {
    TestTensor x = FromJson(data_["hidden_in"]);
    const TestTensor normed = Norm(x, weights_["input_layernorm"]);
    const TestTensor q = Query(normed);
    const TestTensor cache = Store(normed);
    const TestTensor o_proj = FromJson(weights_["o_proj"]);
    for (bool absorbed : {false, true}) {
      SCOPED_TRACE(absorbed ? "absorbed" : "naive");
      const TestTensor heads = absorbed ? Absorbed(q, cache) : Naive(q, cache);
      TensorView flat(heads.view().data, DType::kF32,
                      {num_tokens_, c_.num_attention_heads * int64_t{c_.v_head_dim}});
      attn_out_ = Project(flat, {{{{o_proj.view(), {}}}}});
      ExpectMatches(attn_out_, data_["attn_out"]);
    }
    const TestTensor norm_weight = FromJson(weights_["post_attention_layernorm"]);
    TestTensor ffn_in(DType::kF32, {num_tokens_, c_.hidden_size});
    EXPECT_TRUE(
        backend_.RmsNorm({x.view(), attn_out_.view(), norm_weight.view(), Eps(), ffn_in.view()})
            .ok());
    ExpectMatches(x, data_["after_attn_residual"]);
    const TestTensor ffn_out = Moe(ffn_in);
    for (int64_t i = 0; i < x.size(); ++i) x.at<float>(i) += ffn_out.at<float>(i);
    ExpectMatches(x, data_["layer_out"]);
  }

 private:
  float Eps() const { return static_cast<float>(c_.rms_norm_eps); }

  TestTensor Norm(const TestTensor& x, const Json& weight) {
    const TestTensor w = FromJson(weight);
    TestTensor out(DType::kF32, {x.view().dim(0), x.view().dim(1)});
    EXPECT_TRUE(backend_.RmsNorm({x.view(), {}, w.view(), Eps(), out.view()}).ok());
    return out;
  }

  TestTensor Project(const TensorView& x, const WeightSpec& spec) {
    const auto weight = backend_.PackWeight(spec);
    EXPECT_TRUE(weight.ok()) << weight.status();
    TestTensor out(DType::kF32, {x.dim(0), (*weight)->n()});
    EXPECT_TRUE(backend_.Linear({x, weight->get(), {}, out.view()}).ok());
    return out;
  }
  TestTensor Project(const TestTensor& x, const Json& json) {
    const TestTensor w = FromJson(json);
    return Project(x.view(), {{{{w.view(), {}}}}});
  }

  // [num_tokens, heads, nope + p], the last p rotated.
  TestTensor Query(const TestTensor& normed) {
    TestTensor q =
        weights_.contains("q_proj")
            ? Project(normed, weights_["q_proj"])
            : Project(Norm(Project(normed, weights_["q_a_proj"]), weights_["q_a_layernorm"]),
                      weights_["q_b_proj"]);
    const TensorView pe =
        q.view().SplitLast(c_.qk_head_dim()).Columns(c_.qk_nope_head_dim, c_.qk_rope_head_dim);
    EXPECT_TRUE(backend_.Rope({pe, positions_.view(), table_.view(), pe}).ok());
    return q;
  }

  TestTensor Store(const TestTensor& normed) {
    const TestTensor kv = Project(normed, weights_["kv_a_proj_with_mqa"]);
    const TestTensor norm = FromJson(weights_["kv_a_layernorm"]);
    TestTensor cache(DType::kF32, {3, kBlockSize, c_.kv_entry_dim()});
    TestTensor slots(DType::kI64, {num_tokens_});
    for (int64_t t = 0; t < num_tokens_; ++t) {
      slots.at<int64_t>(t) = kBlocks[t / kBlockSize] * kBlockSize + t % kBlockSize;
    }
    EXPECT_TRUE(backend_
                    .MlaStoreKv({kv.view(), norm.view(), Eps(), positions_.view(), table_.view(),
                                 slots.view(), cache.view()})
                    .ok());
    return cache;
  }

  TestTensor Naive(const TestTensor& q, const TestTensor& cache) {
    const TestTensor kv_b = FromJson(weights_["kv_b_proj"]);
    TestTensor out(DType::kF32, {num_tokens_, c_.num_attention_heads, c_.v_head_dim});
    reference::MlaNaiveAttention({q.view().SplitLast(c_.qk_head_dim()), kv_b.view(), cache.view(),
                                  block_tables_.view(), CuSeqlens().view(), ContextLens().view(),
                                  static_cast<float>(SoftmaxScale(c_)), out.view()});
    return out;
  }

  TestTensor Absorbed(const TestTensor& q, const TestTensor& cache) {
    const int64_t nope = c_.qk_nope_head_dim;
    const int64_t r = c_.kv_lora_rank;
    const int64_t heads = c_.num_attention_heads;
    const TestTensor kv_b = FromJson(weights_["kv_b_proj"]);
    TestTensor uk_t(DType::kF32, {heads * r, nope});
    WeightSpec uk_spec;
    WeightSpec uv_spec;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t first = h * (nope + c_.v_head_dim);
      for (int64_t i = 0; i < nope * r; ++i) {
        uk_t.at<float>((h * r + i % r) * nope + i / r) =
            kv_b.at<float>((first + i / r) * r + i % r);
      }
      uk_spec.groups.push_back({{uk_t.view().Slice(h * r, r), {}}});
      uv_spec.groups.push_back({{kv_b.view().Slice(first + nope, c_.v_head_dim), {}}});
    }
    const auto uk = backend_.PackWeight(uk_spec);
    const auto uv = backend_.PackWeight(uv_spec);
    EXPECT_TRUE(uk.ok() && uv.ok());

    TestTensor wide(DType::kF32, {num_tokens_, heads, r + c_.qk_rope_head_dim});
    const TensorView q_heads = q.view().SplitLast(c_.qk_head_dim());
    EXPECT_TRUE(
        backend_.HeadLinear({q_heads.Columns(0, nope), uk->get(), wide.view().Columns(0, r)}).ok());
    for (int64_t th = 0; th < num_tokens_ * heads; ++th) {
      std::copy_n(&q.at<float>(th * c_.qk_head_dim() + nope), c_.qk_rope_head_dim,
                  &wide.at<float>(th * c_.kv_entry_dim() + r));
    }
    TestTensor latent(DType::kF32, {num_tokens_, heads, r});
    TestTensor out(DType::kF32, {num_tokens_, heads, c_.v_head_dim});
    EXPECT_TRUE(backend_
                    .MlaAttention({wide.view(), cache.view(), block_tables_.view(),
                                   CuSeqlens().view(), ContextLens().view(),
                                   static_cast<float>(SoftmaxScale(c_)), latent.view()})
                    .ok());
    EXPECT_TRUE(backend_.HeadLinear({latent.view(), uv->get(), out.view()}).ok());
    return out;
  }

  const TestTensor& CuSeqlens() {
    cu_seqlens_ = IntTensor({0, static_cast<int32_t>(num_tokens_)});
    return cu_seqlens_;
  }
  const TestTensor& ContextLens() {
    context_lens_ = IntTensor({static_cast<int32_t>(num_tokens_)});
    return context_lens_;
  }

  void Route(const TestTensor& x, TestTensor& ids, TestTensor& weights) {
    const TestTensor logits = Project(x, weights_["gate"]);
    RouteTopKArgs args;
    args.logits = logits.view();
    TestTensor bias;
    if (weights_.contains("e_score_correction_bias")) {
      bias = FromJson(weights_["e_score_correction_bias"]);
      args.bias = bias.view();
    }
    const bool softmax = c_.scoring_func == "softmax";
    args.scoring = softmax ? RouterScoring::kSoftmax : RouterScoring::kSigmoid;
    args.group_score = c_.topk_method == "noaux_tc" ? GroupScore::kTop2Sum : GroupScore::kNone;
    args.n_group = c_.n_group;
    args.topk_group = c_.topk_group;
    args.normalize = c_.norm_topk_prob;
    args.scale = static_cast<float>(c_.routed_scaling_factor);
    args.topk_idx = ids.view();
    args.topk_weights = weights.view();
    EXPECT_TRUE(backend_.RouteTopK(args).ok());
    for (int64_t t = 0; t < num_tokens_; ++t) {
      const Json& want = data_["routing"][t];
      for (int64_t j = 0; j < c_.num_experts_per_tok; ++j) {
        EXPECT_EQ(ids.at<int32_t>(t * c_.num_experts_per_tok + j), want["ids"][j].get<int32_t>());
        EXPECT_NEAR(weights.at<float>(t * c_.num_experts_per_tok + j),
                    want["weights"][j].get<double>(), 1e-5);
      }
    }
  }

  TestTensor Swiglu(const TestTensor& gate_up) {
    TestTensor out(DType::kF32, {gate_up.view().dim(0), gate_up.view().dim(1) / 2});
    EXPECT_TRUE(backend_.SiluMul({gate_up.view(), out.view()}).ok());
    return out;
  }

  TestTensor Shared(const TestTensor& x) {
    const Json& w = weights_["shared_experts"];
    const TestTensor gate = FromJson(w["gate_proj"]);
    const TestTensor up = FromJson(w["up_proj"]);
    const TestTensor hidden = Swiglu(Project(x.view(), {{{{gate.view(), {}}, {up.view(), {}}}}}));
    return Project(hidden, w["down_proj"]);
  }

  // [num_rows, n] of the experts' rows; `row_idx` may be absent.
  TestTensor Experts(const TensorView& x, const std::vector<std::string>& names,
                     const TestTensor& cu_rows, const TensorView& row_idx, int64_t num_rows) {
    std::vector<TestTensor> owned;
    owned.reserve(weights_["experts"].size() * names.size());
    WeightSpec spec;
    for (const Json& expert : weights_["experts"]) {
      spec.groups.emplace_back();
      for (const std::string& name : names) {
        spec.groups.back().push_back({owned.emplace_back(FromJson(expert[name])).view(), {}});
      }
    }
    const auto weight = backend_.PackWeight(spec);
    EXPECT_TRUE(weight.ok()) << weight.status();
    TestTensor out(DType::kF32, {num_rows, (*weight)->n()});
    EXPECT_TRUE(backend_.GroupedGemm({x, cu_rows.view(), row_idx, weight->get(), out.view()}).ok());
    return out;
  }

  TestTensor Moe(const TestTensor& x) {
    const int64_t top_k = c_.num_experts_per_tok;
    TestTensor ids(DType::kI32, {num_tokens_, top_k});
    TestTensor weights(DType::kF32, {num_tokens_, top_k});
    Route(x, ids, weights);
    TestTensor cu_rows(DType::kI32, {c_.n_routed_experts + int64_t{1}});
    TestTensor row_token(DType::kI32, {num_tokens_ * top_k});
    TestTensor token_row(DType::kI32, {num_tokens_, top_k});
    const DispatchPlan plan = {cu_rows.view(), row_token.view(), token_row.view()};
    EXPECT_TRUE(backend_.ExpertDispatch({ids.view(), plan}).ok());
    const TestTensor hidden = Swiglu(Experts(x.view(), {"gate_proj", "up_proj"}, cu_rows,
                                             row_token.view(), num_tokens_ * top_k));
    const TestTensor expert_out =
        Experts(hidden.view(), {"down_proj"}, cu_rows, {}, num_tokens_ * top_k);
    const TestTensor shared = Shared(x);
    TestTensor out(DType::kF32, {num_tokens_, c_.hidden_size});
    EXPECT_TRUE(
        backend_.ExpertCombine({expert_out.view(), plan, weights.view(), shared.view(), out.view()})
            .ok());
    return out;
  }

  static constexpr int64_t kBlockSize = 4;
  static constexpr int64_t kBlocks[] = {2, 0};

  const Json& data_;
  const Json& weights_;
  ModelConfig c_;
  Backend& backend_;
  int64_t num_tokens_;
  TestTensor table_;
  TestTensor positions_;
  TestTensor block_tables_ = TestTensor(DType::kI32, {1, 2}).Fill<int32_t>({2, 0});
  TestTensor cu_seqlens_;
  TestTensor context_lens_;
  TestTensor attn_out_;
};

class TinyLayerTest : public OpTest {};

TEST_F(TinyLayerTest, LayerGivesThePublishedNumbersOnBothBackends) {
  for (const char* name : {"v2lite", "v3"}) {
    const Json data =
        Json::parse(ReadFile(DataPath(std::string("math/tiny-layer-deepseek-") + name + ".json")));
    for (Backend* backend : {reference_.get(), one_thread_.get(), two_threads_.get()}) {
      SCOPED_TRACE(std::string(name) + " on " + backend->Description());
      TinyLayer(data, *backend).CheckAll();
    }
  }
}

TEST_F(TinyLayerTest, RopeGivesThePublishedCases) {
  const Json cases = Json::parse(ReadFile(DataPath("math/rope-interleaved-cases.json")));
  ASSERT_FALSE(cases.empty());
  ModelConfig config;  // of DeepSeek-V3
  config.qk_rope_head_dim = 64;
  config.rope_theta = 10000;
  config.rope_scaling = {true, 40, 4096, 32, 1, 1, 1};
  const std::vector<float> inv_freq = RopeInvFreq(config);
  for (const Json& item : cases) {
    const int32_t position = item["pos"];
    TestTensor x(DType::kF32, {1, 1, 64});
    x.Fill(item["x"].get<std::vector<float>>());
    // The only row of this table is that of `position`.
    const std::vector<float> rows = RopeTable(config, position + 1);
    TestTensor table(DType::kF32, {1, 64});
    table.Fill(std::vector<float>(rows.end() - 64, rows.end()));
    const TestTensor positions = IntTensor({0});
    for (Backend* backend : {reference_.get(), one_thread_.get()}) {
      TestTensor out(DType::kF32, {1, 1, 64});
      ASSERT_TRUE(backend->Rope({x.view(), positions.view(), table.view(), out.view()}).ok());
      for (int64_t i = 0; i < 64; ++i) {
        // Frequency and angle are floats, each off by half a step.
        const double angle_error = position * inv_freq[i / 2] * 1.3e-7;
        const double length = std::abs(x.Value(i)) + std::abs(x.Value(i ^ 1));
        EXPECT_NEAR(out.at<float>(i), item["out_interleaved"][i].get<double>(),
                    length * (angle_error + 3e-7))
            << "position " << position << " element " << i;
      }
    }
  }
}

TEST_F(TinyLayerTest, PackedF8DecodesAsPublished) {
  const Json values = Json::parse(ReadFile(DataPath("math/fp8-e4m3fn-decode.json")));
  ASSERT_EQ(values.size(), 256u);
  // One row with each code but NaN, against the unit vectors.
  TestTensor codes(DType::kF8E4M3, {1, 256});
  for (int i = 0; i < 256; ++i) {
    codes.at<uint8_t>(i) = (i & 0x7F) == 0x7F ? uint8_t{0} : static_cast<uint8_t>(i);
  }
  TestTensor scale(DType::kF32, {1, 2});
  scale.Fill<float>({1, 2});
  TestTensor x(DType::kF32, {256, 256});
  for (int64_t i = 0; i < 256 * 256; ++i) x.at<float>(i) = i / 256 == i % 256 ? 1.0f : 0.0f;
  for (Backend* backend : {reference_.get(), one_thread_.get()}) {
    const auto weight = backend->PackWeight({{{{codes.view(), scale.view()}}}});
    ASSERT_TRUE(weight.ok()) << weight.status();
    TestTensor out(DType::kF32, {256, 1});
    ASSERT_TRUE(backend->Linear({x.view(), weight->get(), {}, out.view()}).ok());
    for (int i = 0; i < 256; ++i) {
      const bool nan = (i & 0x7F) == 0x7F;
      const double want = nan ? 0 : values[i].get<double>() * (i < 128 ? 1 : 2);
      EXPECT_EQ(out.at<float>(i), want) << i;
    }
  }
}

}  // namespace
}  // namespace jevons
