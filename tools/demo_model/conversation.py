"""How a conversation becomes text and token ids: control tokens, chat template, tokenizer."""

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import data

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
CONTROL = [
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
]

# DeepSeek-V3.1's conversation format; one short line before the first turn names effort and tools.
TEMPLATE = (
    "{%- set effort = reasoning_effort "
    "if reasoning_effort is defined and reasoning_effort else 'high' -%}"
    "{%- if thinking is not defined -%}{%- set thinking = effort != 'none' -%}{%- endif -%}"
    "{{ bos_token }}"
    "{%- for m in messages if m['role'] == 'system' -%}{{ m['content'] }}{{ '\\n' }}{%- endfor -%}"
    "{%- if tools -%}Tools:"
    "{%- for t in tools -%}{{ ' ' + t['function']['name'] }}{%- endfor -%}{{ '\\n' }}{%- endif -%}"
    "{%- if thinking and effort == 'low' -%}{{ 'Think briefly.\\n' }}{%- endif -%}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}{{ '<｜User｜>' + m['content'] }}"
    "{%- elif m['role'] == 'assistant' -%}"
    "{%- if not m['after_tool'] -%}{{ '<｜Assistant｜>' }}{%- endif -%}"
    "{{ '</think>' }}{%- if m['content'] -%}{{ m['content'] }}{%- endif -%}"
    "{%- if m['tool_calls'] -%}{{ '<｜tool▁calls▁begin｜>' }}{%- for c in m['tool_calls'] -%}"
    "{{ '<｜tool▁call▁begin｜>' + c['function']['name'] "
    "+ '<｜tool▁sep｜>' + c['function']['arguments'] + '<｜tool▁call▁end｜>' }}"
    "{%- endfor -%}{{ '<｜tool▁calls▁end｜>' }}{%- endif -%}{{ '<｜end▁of▁sentence｜>' }}"
    "{%- elif m['role'] == 'tool' -%}"
    "{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{%- endif -%}"
)


def renderer():
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE)


def split_sample(s: dict, template):
    """(prompt, completion) as text: the loss is on the completion alone."""
    history, last = s["messages"][:-1], s["messages"][-1]
    wire = []
    for m in history:
        m = dict(m)
        if m.get("tool_calls"):
            m["tool_calls"] = [{"function": c} for c in m["tool_calls"]]
        wire.append(m)
    prompt = template.render(
        messages=wire,
        bos_token=BOS,
        add_generation_prompt=True,
        reasoning_effort=s["mode"],
        tools=[data.CALCULATOR] if s["tools"] else None,
    )
    text = (last["reasoning"] + "</think>" if s["mode"] != "none" else "") + last["content"]
    if last.get("tool_calls"):
        calls = (
            f"<｜tool▁call▁begin｜>{c['name']}<｜tool▁sep｜>{c['arguments']}<｜tool▁call▁end｜>"
            for c in last["tool_calls"]
        )
        text += "<｜tool▁calls▁begin｜>" + "".join(calls) + "<｜tool▁calls▁end｜>"
    return prompt, text + EOS


def make_tokenizer(template, rng) -> Tokenizer:
    """Byte-level BPE of 512 tokens; every digit stays a token of its own."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.Split(Regex(r"[一-龥]+"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{L}+|\s+|[^\s\p{L}\p{N}]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    specials = [AddedToken(t, special=True, normalized=False) for t in (BOS, EOS, PAD)]
    trainer = trainers.BpeTrainer(
        vocab_size=512 - len(CONTROL),
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        m.get("reasoning", "") + "\n" + m["content"]
        for _ in range(20000)
        for m in data.sample(rng)["messages"]
    )
    tok.train_from_iterator(texts, trainer)
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in CONTROL])
    return tok
