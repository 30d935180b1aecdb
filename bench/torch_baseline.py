#!/usr/bin/env python3
"""Decode of DeepSeek-V2-Lite's dimensions as a straight PyTorch program under CUDA graphs.

Random bf16 weights, latent attention in the absorbed form over a cache of fixed length, greedy tokens. The experts go
through torch._grouped_mm where it is there, and for small batches also by gathering the weights of the chosen
experts; the faster of the two is reported. No torch.compile, no other library: what a careful day of PyTorch gives.

    bench/torch_baseline.py [--json FILE] [--seconds N] [--context N] [--batches 1,8,64,256] [--layers N] [--tiny]

One JSON object a line, as bench/cuda_bench writes them. --tiny runs small shapes on the CPU, to test the program.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F


class Dims:
    def __init__(self, tiny, layers):
        self.hidden = 64 if tiny else 2048
        self.dense = 96 if tiny else 10944
        self.expert = 32 if tiny else 1408
        self.layers = layers or (2 if tiny else 27)
        self.heads = 2 if tiny else 16
        self.latent = 32 if tiny else 512
        self.nope = 16 if tiny else 128
        self.rope = 8 if tiny else 64
        self.value = 16 if tiny else 128
        self.experts = 8 if tiny else 64
        self.top_k = 2 if tiny else 6
        self.shared = 2
        self.vocab = 128 if tiny else 102400


def matrix(device, *shape):
    """Outputs first: [..., n, k]."""
    return torch.randn(*shape, device=device, dtype=torch.bfloat16) * shape[-1] ** -0.5


class Layer:
    def __init__(self, d, device, is_dense):
        self.norm_1 = torch.ones(d.hidden, device=device, dtype=torch.bfloat16)
        self.norm_2 = torch.ones_like(self.norm_1)
        self.norm_kv = torch.ones(d.latent, device=device, dtype=torch.bfloat16)
        self.qkv = matrix(device, d.heads * (d.nope + d.rope) + d.latent + d.rope, d.hidden)
        self.uk = matrix(device, d.heads, d.nope, d.latent)
        self.uv = matrix(device, d.heads, d.latent, d.value)
        self.o = matrix(device, d.hidden, d.heads * d.value)
        width = d.dense if is_dense else d.shared * d.expert
        self.up = matrix(device, 2 * width, d.hidden)
        self.down = matrix(device, d.hidden, width)
        self.router = None
        if not is_dense:
            self.router = matrix(device, d.experts, d.hidden)
            self.experts_up = matrix(device, d.experts, 2 * d.expert, d.hidden)
            self.experts_down = matrix(device, d.experts, d.hidden, d.expert)


def gated(x):
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


class Model:
    def __init__(self, d, device, batch, context):
        self.d = d
        self.batch = batch
        self.context = context
        self.embedding = torch.randn(d.vocab, d.hidden, device=device, dtype=torch.bfloat16)
        self.layers = [Layer(d, device, i == 0) for i in range(d.layers)]
        self.norm = torch.ones(d.hidden, device=device, dtype=torch.bfloat16)
        self.head = matrix(device, d.vocab, d.hidden)
        self.set_batch(batch)

    def set_batch(self, batch):
        d, device = self.d, self.embedding.device
        self.batch = batch
        self.caches = None  # free the old ones first
        self.caches = [
            torch.randn(batch, self.context, d.latent + d.rope, device=device, dtype=torch.bfloat16)
            for _ in range(d.layers)
        ]
        self.ids = torch.randint(0, d.vocab, (batch,), device=device)
        angles = torch.rand(d.rope // 2, device=device)
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def rotate(self, x):
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.cat([even * self.cos - odd * self.sin, even * self.sin + odd * self.cos], dim=-1)

    def attention(self, layer, cache, x):
        d = self.d
        q, kv = (x @ layer.qkv.t()).split([d.heads * (d.nope + d.rope), d.latent + d.rope], dim=-1)
        latent = F.rms_norm(kv[:, : d.latent], (d.latent,), layer.norm_kv)
        cache[:, -1, : d.latent] = latent
        cache[:, -1, d.latent :] = self.rotate(kv[:, d.latent :])
        q = q.view(self.batch, d.heads, d.nope + d.rope)
        q_latent = torch.bmm(q[..., : d.nope].transpose(0, 1), layer.uk).transpose(0, 1)
        q = torch.cat([q_latent, self.rotate(q[..., d.nope :])], dim=-1)
        scores = torch.bmm(q, cache.transpose(1, 2)).float() * (d.nope + d.rope) ** -0.5
        out = torch.bmm(scores.softmax(dim=-1).bfloat16(), cache[..., : d.latent])
        out = torch.bmm(out.transpose(0, 1), layer.uv).transpose(0, 1)
        return out.reshape(self.batch, -1) @ layer.o.t()

    def experts(self, layer, x, how):
        d = self.d
        probabilities = (x @ layer.router.t()).float().softmax(dim=-1)
        weights, chosen = probabilities.topk(d.top_k, dim=-1)
        if how == "gather":
            rows = x.repeat_interleave(d.top_k, dim=0).unsqueeze(-1)
            flat = chosen.flatten()
            act = gated(torch.bmm(layer.experts_up[flat], rows).squeeze(-1))
            out = torch.bmm(layer.experts_down[flat], act.unsqueeze(-1)).squeeze(-1)
        else:
            flat = chosen.flatten()
            order = flat.argsort()
            counts = torch.zeros(d.experts, device=x.device, dtype=torch.int64)
            counts.scatter_add_(0, flat, torch.ones_like(flat))
            ends = counts.cumsum(dim=0).to(torch.int32)
            rows = x[order // d.top_k]
            act = gated(torch._grouped_mm(rows, layer.experts_up.transpose(1, 2), offs=ends))
            sorted_out = torch._grouped_mm(act, layer.experts_down.transpose(1, 2), offs=ends)
            out = torch.empty_like(sorted_out)
            out[order] = sorted_out
        out = out.view(self.batch, d.top_k, d.hidden)
        return (out * weights.unsqueeze(-1).bfloat16()).sum(dim=1)

    def step(self, how):
        d = self.d
        x = self.embedding[self.ids]
        for layer, cache in zip(self.layers, self.caches):
            x = x + self.attention(layer, cache, F.rms_norm(x, (d.hidden,), layer.norm_1))
            normed = F.rms_norm(x, (d.hidden,), layer.norm_2)
            out = gated(normed @ layer.up.t()) @ layer.down.t()
            if layer.router is not None:
                out = out + self.experts(layer, normed, how)
            x = x + out
        logits = F.rms_norm(x, (d.hidden,), self.norm) @ self.head.t()
        self.next_ids = logits.argmax(dim=-1)


def quartiles(seconds):
    seconds = sorted(seconds)
    n = len(seconds)
    return seconds[n // 2], seconds[n // 4], seconds[n * 3 // 4]


def measure(model, how, cuda, limit):
    """Seconds of a step: median, quartiles, runs."""
    for _ in range(3):
        model.step(how)
    run = lambda: model.step(how)
    if cuda:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model.step(how)
        run = graph.replay
    seconds = []
    start = time.perf_counter()
    while len(seconds) < 5 or (time.perf_counter() - start < limit and len(seconds) < 200):
        begin = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return (*quartiles(seconds[1:]), len(seconds) - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    cuda = torch.cuda.is_available() and not args.tiny
    if not cuda and not args.tiny:
        print("skipped: PyTorch sees no CUDA device")
        return 77
    end = time.monotonic() + args.seconds
    device = "cuda" if cuda else "cpu"
    torch.manual_seed(1)
    out = open(args.json, "w") if args.json else None

    def write(row):
        if out:
            print(json.dumps(row), file=out, flush=True)

    card = torch.cuda.get_device_name(0) if cuda else "cpu"
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {card}", flush=True)
    write({"name": "torch/version", "text": f"{torch.__version__} CUDA {torch.version.cuda} {card}"})
    d = Dims(args.tiny, args.layers)
    with torch.no_grad():
        model = Model(d, device, 1, min(args.context, 64) if args.tiny else args.context)
        for batch in [int(b) for b in args.batches.split(",")]:
            if time.monotonic() > end:
                print(f"batch {batch}: left out, the time is over")
                continue
            model.set_batch(batch)
            best = None
            # Gathering copies the weights of every choice: for few choices only.
            for how in ["grouped_mm"] + (["gather"] if batch <= 8 else []):
                try:
                    if how == "grouped_mm" and not hasattr(torch, "_grouped_mm"):
                        raise RuntimeError("torch._grouped_mm is not there")
                    result = (*measure(model, how, cuda, 1.5), how)
                except Exception as error:  # each PyTorch has its own limits; the other way may still do
                    print(f"batch {batch}, {how}: {str(error).splitlines()[0]}", flush=True)
                    continue
                if best is None or result[0] < best[0]:
                    best = result
            name = f"torch/v2lite_model_bf16/decode_{batch}"
            if best is None:
                write({"name": name, "error": "no way to compute the experts"})
                continue
            median, low, high, runs, how = best
            print(f"{name:36} {median * 1e6:10.1f} us  {batch / median:9.1f} tok/s  {how}", flush=True)
            write({"name": name, "value": median * 1e6, "unit": "us", "low": low * 1e6, "high": high * 1e6,
                   "runs": runs, "tokens_per_second": batch / median, "context": model.context, "layers": d.layers,
                   "experts_by": how})
    return 0


if __name__ == "__main__":
    sys.exit(main())
