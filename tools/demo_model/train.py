"""Trains the demo reasoner and writes it as a Hugging Face checkpoint folder.

    python train.py --out checkpoint --minutes 90

Two CPU cores are enough; a GPU is used when there is one.

Needs torch, tokenizers, safetensors, jinja2.
"""

import argparse
import json
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import data
from conversation import BOS, EOS, PAD, TEMPLATE, make_tokenizer, renderer, split_sample
from reasoner import Config, Reasoner


class Batches:
    """Batches of at most `tokens` positions, each of samples of about one length, padded."""

    def __init__(self, tok, template, tokens, seed):
        self.tok, self.template, self.tokens = tok, template, tokens
        self.rng, self.ready = random.Random(seed), []

    def fill(self, samples=2048):
        def encode(text):
            return self.tok.encode(text, add_special_tokens=False).ids

        pool = []
        for _ in range(samples):
            prompt, completion = map(encode, split_sample(data.sample(self.rng), self.template))
            pool.append((prompt + completion, [-100] * len(prompt) + completion))
        pool.sort(key=lambda pair: len(pair[0]))
        while pool:
            rows = max(1, self.tokens // len(pool[-1][0]))
            self.ready.append(pool[-rows:])
            del pool[-rows:]
        self.rng.shuffle(self.ready)

    def next(self, device):
        """(ids, labels), both [B, T]"""
        if not self.ready:
            self.fill()
        rows = self.ready.pop()
        longest = max(len(ids) for ids, _ in rows)

        def pad(values, fill):
            return values + [fill] * (longest - len(values))

        ids = torch.tensor([pad(ids, 2) for ids, _ in rows], device=device)
        labels = torch.tensor([pad(labels, -100) for _, labels in rows], device=device)
        return ids, labels


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def losses(model, batch, mtp_weight):
    ids, labels = batch
    logits, drafted = model(ids, with_mtp=mtp_weight > 0)
    main = cross_entropy(logits[:, :-1], labels[:, 1:])
    if drafted is None:
        return main, main, torch.zeros(())
    extra = cross_entropy(drafted[:, :-1], labels[:, 2:])
    return main + mtp_weight * extra, main, extra


@torch.no_grad()
def generate(model, tok, prompt, device, limit=400):
    ids = tok.encode(prompt, add_special_tokens=False).ids
    start = len(ids)
    while len(ids) - start < limit:
        logits, _ = model(torch.tensor([ids], device=device))
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == 1:
            break
    return tok.decode(ids[start:], skip_special_tokens=True)


def evaluate(model, tok, template, device, n, seed=12345):
    """Share of fresh products (three digits by two) answered exactly right, per effort."""
    model.eval()
    rng, score = random.Random(seed), {}
    for mode in ("none", "low", "high"):
        right = 0
        for _ in range(n):
            a, b = rng.randint(100, 999), rng.randint(10, 99)
            messages = [{"role": "user", "content": f"What is {a} * {b}?"}]
            prompt = template.render(
                messages=messages,
                bos_token=BOS,
                add_generation_prompt=True,
                reasoning_effort=mode,
                tools=None,
            )
            right += generate(model, tok, prompt, device).rstrip().endswith(f"= {a * b}")
        score[mode] = right / n
    model.train()
    return score


def export(model, tok, out, note):
    os.makedirs(out, exist_ok=True)
    save_file(
        model.published_tensors(), os.path.join(out, "model.safetensors"), metadata={"format": "pt"}
    )
    tok.save(os.path.join(out, "tokenizer.json"))

    def write(name, value):
        with open(os.path.join(out, name), "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    write("config.json", model.c.published())
    write(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "add_bos_token": False,
            "model_max_length": model.c.max_position_embeddings,
            "chat_template": TEMPLATE,
        },
    )
    write("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False})
    write("training.json", note)


def parse_flags():
    flags = argparse.ArgumentParser()
    flags.add_argument("--out", default="checkpoint", help="folder to write")
    flags.add_argument("--minutes", type=float, default=90)
    flags.add_argument("--tokens", type=int, default=4096, help="positions in a batch")
    flags.add_argument("--lr", type=float, default=1.5e-3)
    flags.add_argument("--seed", type=int, default=1)
    flags.add_argument("--eval", type=int, default=40, help="problems an evaluation")
    flags.add_argument("--resume", help="checkpoint folder to go on from, tokenizer included")
    return flags.parse_args()


def make_optimizer(model, lr):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def learning_rate(peak, step, done):
    """Rises over 200 steps, then falls along a cosine to a twentieth at the end."""
    return peak * min(1.0, (step + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def balance_experts(model, rate):
    """Lifts the selection bias of idle experts and lowers that of busy ones."""
    for layer in [*model.layers, model.mtp]:
        load = getattr(layer.mlp, "load", None)
        if load is not None:
            layer.mlp.gate.e_score_correction_bias += rate * torch.sign(load.mean() - load)


def main():
    a = parse_flags()
    torch.manual_seed(a.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    template = renderer()
    if a.resume:
        tok = Tokenizer.from_file(os.path.join(a.resume, "tokenizer.json"))
    else:
        tok = make_tokenizer(template, random.Random(a.seed))
    batches = Batches(tok, template, a.tokens, a.seed + 1)
    model = Reasoner(Config(vocab_size=tok.get_vocab_size())).to(device)
    if a.resume:
        model.load_published(load_file(os.path.join(a.resume, "model.safetensors")))
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.2f} M parameters, vocabulary {tok.get_vocab_size()}, on {device}", flush=True)
    optimizer = make_optimizer(model, a.lr)
    start, step, tokens, shown = time.time(), 0, 0, 0.0
    while (done := (time.time() - start) / (a.minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(a.lr, step, done)
        batch = batches.next(device)
        # The draft layer learns once the trunk is good.
        mtp_weight = 0.3 if done > 0.6 or a.resume else 0.0
        total, main_loss, mtp_loss = losses(model, batch, mtp_weight)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        balance_experts(model, 0.002 * (1 - done))
        step += 1
        tokens += batch[0].numel()
        if step % 50 == 0:
            print(
                f"step {step} {done:.3f} tokens {tokens / 1e6:.2f}M loss {main_loss.item():.4f} "
                f"mtp {mtp_loss.item():.4f} {tokens / (time.time() - start):.0f} tok/s",
                flush=True,
            )
        if done - shown > 0.1:
            shown = done
            print("accuracy", evaluate(model, tok, template, device, a.eval), flush=True)
            export(model, tok, a.out, {"step": step, "tokens": tokens})
    score = evaluate(model, tok, template, device, max(50, a.eval))
    note = {"step": step, "tokens": tokens, "accuracy": score, "seed": a.seed}
    export(model, tok, a.out, {**note, "minutes": a.minutes, "device": device})
    print("final accuracy", score, flush=True)


if __name__ == "__main__":
    main()
