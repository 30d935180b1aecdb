"""A DeepSeek-V3-architecture model small enough to train in an hour, with the published names.

Multi-head latent attention with query compression, interleaved RoPE without YaRN, a first dense
layer, sigmoid routing with a selection bias and group-limited top-k, one shared expert, and one
multi-token-prediction (MTP) layer.
"""

import math
from dataclasses import dataclass, asdict

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    q_lora_rank: int = 128
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 4
    topk_group: int = 2
    first_k_dense_replace: int = 1
    routed_scaling_factor: float = 1.5
    num_nextn_predict_layers: int = 1
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 4096

    def published(self) -> dict:
        """config.json as DeepSeek-V3 checkpoints spell it."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **asdict(self),
            "num_key_value_heads": self.num_attention_heads,
            "moe_layer_freq": 1,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "rope_scaling": None,
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 1,
        }


class RmsNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def linear(n_in, n_out):
    layer = nn.Linear(n_in, n_out, bias=False)
    nn.init.normal_(layer.weight, std=0.02 if n_in > 512 else 1 / math.sqrt(n_in) * 0.6)
    return layer


def rope(x, theta):
    """x [..., T, d] at positions 0..T-1, with pairs (2i, 2i+1)."""
    T, d = x.shape[-2:]
    freq = theta ** (-torch.arange(0, d, 2, device=x.device, dtype=torch.float32) / d)
    angle = torch.arange(T, device=x.device, dtype=torch.float32)[:, None] * freq
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        h, qk = c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
        self.q_a_proj = linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RmsNorm(c.q_lora_rank, 1e-6)
        self.q_b_proj = linear(c.q_lora_rank, h * qk)
        self.kv_a_proj_with_mqa = linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim)
        self.kv_a_layernorm = RmsNorm(c.kv_lora_rank, 1e-6)
        self.kv_b_proj = linear(c.kv_lora_rank, h * (c.qk_nope_head_dim + c.v_head_dim))
        self.o_proj = linear(h * c.v_head_dim, c.hidden_size)

    def forward(self, x):
        """x [B, T, D] -> [B, T, D], causal."""
        c, (B, T, _) = self.c, x.shape
        h = c.num_attention_heads
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(B, T, h, -1).transpose(1, 2)
        q_nope, q_pe = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(B, T, h, -1).transpose(1, 2)
        k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], -1)
        q = torch.cat((q_nope, rope(q_pe, c.rope_theta)), -1)
        k = torch.cat((k_nope, rope(k_pe.unsqueeze(1), c.rope_theta).expand(-1, h, -1, -1)), -1)
        v = F.pad(v, (0, q.shape[-1] - v.shape[-1]))  # equal head sizes take the fused path
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)[..., : c.v_head_dim]
        return self.o_proj(o.transpose(1, 2).reshape(B, T, -1))


class Mlp(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.gate_proj, self.up_proj = linear(dim, inner), linear(dim, inner)
        self.down_proj = linear(inner, dim)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Sigmoid routing: the bias only chooses experts, the weights are the plain scores."""

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(
            torch.randn(c.n_routed_experts, c.hidden_size) / math.sqrt(c.hidden_size)
        )
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))

    def forward(self, x):
        c = self.c
        scores = torch.sigmoid(F.linear(x.float(), self.weight.float()))
        choice = scores + self.e_score_correction_bias
        grouped = choice.view(-1, c.n_group, c.n_routed_experts // c.n_group)
        kept = grouped.topk(2, -1).values.sum(-1).topk(c.topk_group, -1).indices
        allowed = torch.zeros(len(x), c.n_group, device=x.device).scatter_(1, kept, 1.0).bool()
        choice = grouped.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(1)
        topk_idx = choice.topk(c.num_experts_per_tok, -1).indices
        w = scores.gather(1, topk_idx)
        return topk_idx, (w / (w.sum(-1, keepdim=True) + 1e-20) * c.routed_scaling_factor).to(
            x.dtype
        )


class Moe(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate = Gate(c)
        self.experts = nn.ModuleList(
            Mlp(c.hidden_size, c.moe_intermediate_size) for _ in range(c.n_routed_experts)
        )
        self.shared_experts = Mlp(c.hidden_size, c.n_shared_experts * c.moe_intermediate_size)
        self.load = None

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        topk_idx, topk_weights = self.gate(flat)
        out = self.shared_experts(flat)
        order = topk_idx.flatten().argsort(stable=True)
        counts = torch.bincount(topk_idx.flatten(), minlength=len(self.experts))
        self.load = counts.float()
        rows, weights = order // topk_idx.shape[1], topk_weights.flatten()[order]
        start = 0
        for expert, n in zip(self.experts, counts.tolist()):
            if n:
                r = rows[start : start + n]
                out = out.index_add(0, r, expert(flat[r]) * weights[start : start + n, None])
            start += n
        return out.view_as(x)


class Layer(nn.Module):
    def __init__(self, c: Config, index: int):
        super().__init__()
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        if index >= c.first_k_dense_replace:
            self.mlp = Moe(c)
        else:
            self.mlp = Mlp(c.hidden_size, c.intermediate_size)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Mtp(Layer):
    """Predicts token t+2 from the trunk's hidden state at t and the embedding of token t+1."""

    def __init__(self, c: Config):
        super().__init__(c, c.num_hidden_layers)
        self.enorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.hnorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.eh_proj = linear(2 * c.hidden_size, c.hidden_size)
        self.shared_head = nn.ModuleDict({"norm": RmsNorm(c.hidden_size, c.rms_norm_eps)})

    def draft(self, hidden, next_embedding):
        x = self.eh_proj(torch.cat((self.enorm(next_embedding), self.hnorm(hidden)), -1))
        return self.shared_head["norm"](super().forward(x))


class Reasoner(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.mtp = Mtp(c)
        self.norm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = linear(c.hidden_size, c.vocab_size)

    def forward(self, ids, with_mtp=False):
        """ids [B, T] -> logits [B, T, V] and, if asked, MTP logits [B, T-1, V] for token t+2."""
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        hidden = self.norm(x)
        logits = self.lm_head(hidden)
        if not with_mtp:
            return logits, None
        drafted = self.mtp.draft(hidden[:, :-1], self.embed_tokens(ids[:, 1:]))
        return logits, self.lm_head(drafted)

    def published_tensors(self) -> dict:
        """The weights under DeepSeek-V3's checkpoint names, bf16 but for the selection bias."""
        out = {}
        for name, tensor in self.state_dict().items():
            if name.startswith("mtp."):
                name = f"layers.{self.c.num_hidden_layers}." + name[4:]
            name = name if name.startswith("lm_head") else "model." + name
            dtype = torch.float32 if "correction_bias" in name else torch.bfloat16
            out[name] = tensor.detach().cpu().to(dtype)
        last = f"model.layers.{self.c.num_hidden_layers}."
        out[last + "embed_tokens.weight"] = out["model.embed_tokens.weight"].clone()
        out[last + "shared_head.head.weight"] = out["lm_head.weight"].clone()
        return {k: v.contiguous() for k, v in out.items()}

    def load_published(self, tensors: dict):
        """The inverse of published_tensors."""
        last, state = f"model.layers.{self.c.num_hidden_layers}.", {}
        for name, tensor in tensors.items():
            if name in (last + "embed_tokens.weight", last + "shared_head.head.weight"):
                continue
            if name.startswith(last):
                name = name.replace(last, "mtp.")
            name = name.removeprefix("model.")
            state[name] = tensor.float()
        self.load_state_dict(state)
