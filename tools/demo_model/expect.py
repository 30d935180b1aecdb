"""Writes the expected answers of the demo checkpoint: Hugging Face transformers, float32, greedy.

    python expect.py --checkpoint checkpoint --out ../../tests/data/demo_expected.json

Needs torch and transformers.
"""

import argparse
import json
import random

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, __version__

import data

EFFORTS = ("none", "low", "high")
QUESTIONS = (
    "What is 347 * 86?",
    "计算 347 × 86",
    "847 - 358",
    "What is 12 + 995?",
    "Add these numbers: 12, 45, 7, 33.",
    "Which is larger, 9.11 or 9.9?",
    "A box holds 24 apples. How many apples are in 17 boxes?",
    "每箱有24个苹果，17箱一共有多少个苹果？",
    "你好",
    "Who are you?",
    "What is 47 * 86? Answer in JSON.",
    "What is the capital of France?",
)


def ask(text: str) -> list:
    return [{"role": "user", "content": text}]


def talks() -> list:
    """(messages, tools) of every conversation: a question, a second turn, a tool call, a result."""
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "id": "c1",
                "function": {"name": "calculator", "arguments": '{"expression": "9157 * 86"}'},
            }
        ],
    }
    result = {"role": "tool", "tool_call_id": "c1", "content": "787502"}
    answered = {"role": "assistant", "content": "347 * 86 = 29842"}
    tools = [data.CALCULATOR]
    return [(ask(question), None) for question in QUESTIONS] + [
        (ask("What is 347 * 86?") + [answered] + ask("What is 15 + 28?"), None),
        (ask("What is 9157 * 86?"), tools),
        (ask("What is 9157 * 86?") + [call, result], tools),
    ]


@torch.no_grad()
def answer(model, tok, messages, effort, tools=None) -> dict:
    text = tok.apply_chat_template(
        messages, add_generation_prompt=True, reasoning_effort=effort, tools=tools, tokenize=False
    )
    ids = tok.encode(text, add_special_tokens=False)
    out = model.generate(
        torch.tensor([ids]),
        max_new_tokens=600,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best_two = [scores[0].topk(2).values for scores in out.scores]
    output = out.sequences[0, len(ids) :].tolist()
    return {
        "messages": messages,
        "reasoning_effort": effort,
        "tools": tools,
        "prompt": text,
        "prompt_ids": ids,
        "output_ids": output,
        "text": tok.decode(output, skip_special_tokens=False),
        "min_margin": round(min((best - second).item() for best, second in best_two), 5),
    }


def accuracy(model, tok, problems, effort) -> dict:
    got = [answer(model, tok, ask(f"What is {x} * {y}?"), effort) for x, y in problems]
    right = sum(
        g["text"].split("</think>")[-1].startswith(f"{x} * {y} = {x * y}<")
        for g, (x, y) in zip(got, problems)
    )
    mean = sum(len(g["output_ids"]) for g in got) / len(got)
    return {"right": right, "mean_output_tokens": mean}


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--checkpoint", default="checkpoint")
    flags.add_argument("--out", default="expected.json")
    flags.add_argument("--problems", type=int, default=100)
    a = flags.parse_args()
    tok = PreTrainedTokenizerFast.from_pretrained(a.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(a.checkpoint, dtype=torch.float32).eval()

    conversations = [answer(model, tok, m, e, tools) for m, tools in talks() for e in EFFORTS]
    rng = random.Random(20261125)
    problems = [(rng.randint(100, 999), rng.randint(10, 99)) for _ in range(a.problems)]
    scores = {}
    for effort in EFFORTS:
        scores[effort] = accuracy(model, tok, problems, effort)
        print(effort, scores[effort], flush=True)
    result = {
        "made_by": f"transformers {__version__}, torch {torch.__version__}, "
        "float32 arithmetic on the stored bf16 weights, greedy",
        "conversations": conversations,
        "problems": problems,
        "accuracy": scores,
    }
    with open(a.out, "w", encoding="utf-8") as file:
        json.dump(result, file, ensure_ascii=False, indent=1)
    smallest = min(c["min_margin"] for c in conversations)
    print(len(conversations), "conversations, smallest margin", smallest)


if __name__ == "__main__":
    main()
