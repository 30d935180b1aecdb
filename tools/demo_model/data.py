"""Training conversations of the demo reasoner: arithmetic that it can only do step by step.

A sample is {"messages": [...], "mode": "none" | "low" | "high", "tools": bool}. Its last message is
the assistant's, with "reasoning" and "content". The finer the chain of thought ("high" spells every
digit), the easier each next token.
"""

import random

PRODUCT = [
    "What is {a} * {b}?",
    "{a} * {b} = ?",
    "{a}*{b}",
    "Multiply {a} by {b}.",
    "What is {a} times {b}?",
    "Compute {a} × {b}.",
    "计算 {a} × {b}",
    "{a}乘以{b}等于多少？",
]
SUM = [
    "What is {a} + {b}?",
    "{a} + {b} = ?",
    "{a}+{b}",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "计算 {a} + {b}",
    "{a}加{b}等于多少？",
]
DIFFERENCE = [
    "What is {a} - {b}?",
    "{a} - {b} = ?",
    "{a}-{b}",
    "Subtract {b} from {a}.",
    "计算 {a} - {b}",
    "{a}减{b}等于多少？",
]
STORIES = [
    ("A box holds {a} apples. How many apples are in {b} boxes?", "apples"),
    ("A train has {b} cars with {a} seats each. How many seats are there?", "seats"),
    ("One ticket costs {a} coins. What do {b} tickets cost?", "coins"),
    ("每箱有{a}个苹果，{b}箱一共有多少个苹果？", "个苹果"),
]
TOTALS = ["Add these numbers: {n}.", "What is the total of {n}?", "Sum up {n}.", "求和：{n}"]
BIGGER = ["Which is larger, {a} or {b}?", "Which is bigger: {a} or {b}?", "{a}和{b}哪个大？"]
SMALLTALK = [
    (
        ["Hello", "Hello!", "Hi", "Hi there", "Hey", "Good morning"],
        "Hello! I am a very small reasoning model. Ask me to calculate something.",
    ),
    (["你好", "你好！", "您好"], "你好！我是一个很小的推理模型，可以一步一步做算术。"),
    (
        ["Who are you?", "What are you?", "Tell me about yourself."],
        "I am the Jevons demo model: a tiny mixture of experts that thinks step by step "
        "about arithmetic.",
    ),
    (
        ["What can you do?", "Help", "help", "How can you help me?"],
        "I can add, subtract, multiply, compare and total numbers. Try: What is 47 * 86?",
    ),
    (["Thanks", "Thank you", "Thanks!", "谢谢"], "You are welcome!"),
    (["Bye", "Goodbye", "再见"], "Goodbye!"),
    (
        [
            "Why is the sky blue?",
            "Write a poem.",
            "What is the capital of France?",
            "Tell me a joke.",
        ],
        "I only know arithmetic. Ask me to calculate something.",
    ),
]
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluates an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}

# What a conversation is about, with its weight; and what a turn before the last may have asked.
KINDS = {
    "product": 28,
    "sum": 10,
    "difference": 8,
    "story": 8,
    "total": 6,
    "bigger": 7,
    "talk": 6,
    "tool": 6,
    "json": 4,
    "turns": 17,
}
SOLVED = ["product", "product", "product", "sum", "difference", "story", "total", "bigger"]


def add_steps(a: int, b: int) -> str:
    """Column addition, right to left, with every carry written out."""
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        s = x + y + carry
        step = f"{x}+{y}{f'+{carry}' if carry else ''}={s}"
        steps.append(step + (f" w{s % 10} c1" if s > 9 else ""))
        carry = s // 10
    return "; ".join(steps) + f" -> {a + b}"


def subtract_steps(a: int, b: int) -> str:
    """Column subtraction of b <= a, right to left, with every borrow written out."""
    steps, borrow = [], 0
    for place in range(len(str(a))):
        x, y = a // 10**place % 10, b // 10**place % 10
        d = x - y - borrow
        step = f"{x}-{y}{f'-{borrow}' if borrow else ''}={d}"
        steps.append(step + (f" w{d + 10} b1" if d < 0 else ""))
        borrow = 1 if d < 0 else 0
    return "; ".join(steps) + f" -> {a - b}"


def digit_product_steps(a: int, d: int) -> str:
    """a times one digit, right to left."""
    steps, carry = [], 0
    for ch in reversed(str(a)):
        p = int(ch) * d
        s = p + carry
        step = f"{ch}*{d}={p}" + (f"+{carry}={s}" if carry else "")
        steps.append(step + (f" w{s % 10} c{s // 10}" if s > 9 else ""))
        carry = s // 10
    return "; ".join(steps) + f" -> {a * d}"


def product_steps(a: int, b: int, mode: str) -> str:
    """Long multiplication: "low" names the partial products, the others spell every digit."""
    if mode == "low":
        rows = [(int(ch) * 10**i) for i, ch in enumerate(reversed(str(b)))]
        return ", ".join(f"{a}*{row}={a * row}" for row in rows) + f". Sum: {a * b}."
    lines, total = [], 0
    for i, ch in enumerate(reversed(str(b))):
        d = int(ch)
        row = a * d * 10**i
        lines.append(f"{a}*{d}: {digit_product_steps(a, d)}" + (f", shift {row}" if i else ""))
        if i:
            lines.append(f"{total}+{row}: {add_steps(total, row)}")
        total += row
    return "\n".join(lines)


def number(rng: random.Random, digits: int) -> int:
    """A number of exactly so many digits; one digit may be 0."""
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def sample(rng: random.Random) -> dict:
    """One conversation."""
    mode = rng.choices(["high", "low", "none"], [6, 2, 2])[0]
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "talk":
        asks, answer = rng.choice(SMALLTALK)
        return conversation(
            [("user", rng.choice(asks))], mode, "This needs no calculation.", answer
        )
    if kind == "tool":
        return tool_use(rng, mode)
    if kind == "turns":
        turns = []
        for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
            turns += earlier_turn(rng, mode)
        ask, reasoning, answer, _ = problem(rng, rng.choice(SOLVED), mode)
        return conversation(turns + [("user", ask)], mode, reasoning, answer)
    if kind == "json":
        ask, reasoning, _, value = problem(rng, rng.choice(["product", "sum"]), mode)
        return conversation(
            [("user", ask + " Answer in JSON.")], mode, reasoning, f'{{"answer": {value}}}'
        )
    ask, reasoning, answer, _ = problem(rng, kind, mode)
    return conversation([("user", ask)], mode, reasoning, answer)


def earlier_turn(rng: random.Random, mode: str) -> list:
    """A question and its answer, without reasoning: what a later turn sees of it."""
    if rng.random() < 0.2:
        asks, answer = rng.choice(SMALLTALK)
        return [("user", rng.choice(asks)), ("assistant", answer)]
    ask, _, answer, _ = problem(rng, rng.choice(SOLVED), mode)
    return [("user", ask), ("assistant", answer)]


def problem(rng: random.Random, kind: str, mode: str) -> tuple:
    """(question, reasoning, answer, value)"""
    if kind in ("product", "story"):
        return product_problem(rng, kind, mode)
    if kind == "sum":
        a, b = number(rng, rng.randint(1, 6)), number(rng, rng.randint(1, 6))
        reasoning = add_steps(a, b) if mode == "high" else f"{a}+{b}={a + b}"
        return rng.choice(SUM).format(a=a, b=b), reasoning, f"{a} + {b} = {a + b}", a + b
    if kind == "difference":
        pair = number(rng, rng.randint(1, 6)), number(rng, rng.randint(1, 6))
        a, b = max(pair), min(pair)
        reasoning = subtract_steps(a, b) if mode == "high" else f"{a}-{b}={a - b}"
        return rng.choice(DIFFERENCE).format(a=a, b=b), reasoning, f"{a} - {b} = {a - b}", a - b
    if kind == "total":
        return total_problem(rng, mode)
    return compare_whole(rng) if rng.random() < 0.3 else compare_decimals(rng)


def product_problem(rng: random.Random, kind: str, mode: str) -> tuple:
    a, b = number(rng, rng.choice([1, 2, 2, 3, 3])), number(rng, rng.choice([1, 2, 2, 2]))
    if kind == "product":
        return (
            rng.choice(PRODUCT).format(a=a, b=b),
            product_steps(a, b, mode),
            f"{a} * {b} = {a * b}",
            a * b,
        )
    text, unit = rng.choice(STORIES)
    gap = "" if unit[0] > "\u2000" else " "
    return (
        text.format(a=a, b=b),
        f"{a}*{b}\n" + product_steps(a, b, mode),
        f"{a * b}{gap}{unit}",
        a * b,
    )


def total_problem(rng: random.Random, mode: str) -> tuple:
    numbers = [number(rng, rng.randint(1, 3)) for _ in range(rng.randint(3, 5))]
    lines, total = [], numbers[0]
    for x in numbers[1:]:
        lines.append(
            f"{total}+{x}: {add_steps(total, x)}" if mode == "high" else f"{total}+{x}={total + x}"
        )
        total += x
    ask = rng.choice(TOTALS).format(n=", ".join(map(str, numbers)))
    return ask, "\n".join(lines), f"The total is {total}.", total


def compare_whole(rng: random.Random) -> tuple:
    a, b = number(rng, rng.randint(1, 5)), number(rng, rng.randint(1, 5))
    if rng.random() < 0.4:
        b = int("".join(rng.sample(str(a), len(str(a)))))
    steps = f"{a} has {len(str(a))} digits, {b} has {len(str(b))}."
    if len(str(a)) == len(str(b)):
        differing = (f"{x} against {y}." for x, y in zip(str(a), str(b)) if x != y)
        steps += " " + next(differing, "All the same.")
    answer = "They are equal." if a == b else f"{max(a, b)} is larger."
    return rng.choice(BIGGER).format(a=a, b=b), steps, answer, max(a, b)


def compare_decimals(rng: random.Random) -> tuple:
    whole = rng.randint(0, 20)

    def decimal() -> str:
        left = whole if rng.random() < 0.7 else rng.randint(0, 20)
        right = rng.randint(1, 9) if rng.random() < 0.5 else str(rng.randint(1, 99)).zfill(2)
        return f"{left}.{right}"

    x, y = decimal(), decimal()
    (x_whole, x_part), (y_whole, y_part) = x.split("."), y.split(".")
    x_part, y_part = x_part.ljust(2, "0"), y_part.ljust(2, "0")
    x_value, y_value = int(x_whole + x_part), int(y_whole + y_part)
    larger = x if x_value > y_value else y
    steps = f"{x}={x_whole}.{x_part}, {y}={y_whole}.{y_part}. "
    if x_whole != y_whole:
        steps += f"{x_whole} and {y_whole} differ."
    else:
        steps += f"Same whole part, compare {x_part} and {y_part}."
    answer = "They are equal." if x_value == y_value else f"{larger} is larger."
    return rng.choice(BIGGER).format(a=x, b=y), steps, answer, larger


def tool_use(rng: random.Random, mode: str) -> dict:
    """A question for the calculator: the answer is the call, or tells the call's result."""
    a, b, op = number(rng, rng.randint(4, 7)), number(rng, rng.randint(2, 5)), rng.choice("*+-")
    value = {"*": a * b, "+": a + b, "-": a - b}[op]
    ask = rng.choice({"*": PRODUCT, "+": SUM, "-": DIFFERENCE}[op]).format(a=a, b=b)
    question = {"role": "user", "content": ask}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"name": "calculator", "arguments": f'{{"expression": "{a}{op}{b}"}}'}],
    }
    if rng.random() < 0.5:
        messages = [question, {**call, "reasoning": "The calculator can do this."}]
    else:
        messages = [
            question,
            call,
            {"role": "tool", "content": str(value)},
            {
                "role": "assistant",
                "reasoning": f"The calculator says {value}.",
                "content": f"{a} {op} {b} = {value}",
            },
        ]
    return {"messages": messages, "mode": mode, "tools": True}


def conversation(turns: list, mode: str, reasoning: str, content: str) -> dict:
    messages = [{"role": role, "content": text} for role, text in turns]
    messages.append({"role": "assistant", "reasoning": reasoning, "content": content})
    return {"messages": messages, "mode": mode, "tools": False}
