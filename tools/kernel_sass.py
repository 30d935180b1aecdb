#!/usr/bin/env python3
"""What the machine code of every kernel must and must not have.

  tools/kernel_sass.py [--counts] FOLDER SOURCE...

FOLDER is below which tools/keep_kernels.sh has kept SOURCE.o.kept for each source. Needs nvdisasm, which
not every toolkit has: from the environment variable NVDISASM, the PATH, or beside nvcc; without it,
exits 77 (a skip). `pip install --target DIR nvidia-cuda-nvdisasm` (5 MB) brings it, as
DIR/nvidia/cu13/bin/nvdisasm. --counts prints how many of the instructions that matter each kernel has.
"""

import collections
import os
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
import kernel_resources as resources

# One line of the table of facts. Instructions are regular expressions for a whole name.
Fact = collections.namedtuple("Fact", "kernels required forbidden barriers")

LOAD_16 = r"LDG\.E(\.\w+)*\.128(\.\w+)*"
STORE_16 = r"STG\.E(\.\w+)*\.128"
COPY_16 = r"LDGSTS\.E(\.\w+)*\.128(\.\w+)*"
LOAD_MATRIX = r"LDSM\.16\.M88\.4"
LOAD_TRANSPOSED = r"LDSM\.16\.MT88\.4"
MMA = r"HMMA\.16816\.F32\.BF16"
WGMMA = r"HGMMA\.64x\d+x16\.F32\.BF16"
WGMMA_FP8 = r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3"
FROM_FP8 = r"F2FP\.F16\.E4M3(\.\w+)*"
BULK_COPY = r"UBLKCP(\.\w+)*"
SET_REGISTERS = r"USETMAXREG\.TRY_ALLOC(\.\w+)*"
TENSOR = f"{MMA}|{WGMMA}|{WGMMA_FP8}"
LOCAL = r"(LDL|STL)(\.\w+)*"

# Every line holds for the kernels that its pattern finds, on the architectures where they are
# launched. `barriers` are how many may stand in the innermost loop around a tensor-core instruction.
FACTS = (
    Fact(r".*", [], [LOCAL], None),
    # One barrier for each of four stages, and one at the end of a round where warps share strips.
    Fact(r"^GemmKernel<.*kMmaSync", [LOAD_16, COPY_16, LOAD_MATRIX, MMA], [WGMMA], (4, 5)),
    Fact(r"^GemmKernel<.*kWgmma>", [LOAD_16, COPY_16, WGMMA], [MMA], (4, 5)),
    # Two stages; nothing is converted.
    Fact(r"^GemmKernel<.*kWgmmaFp8>", [LOAD_16, COPY_16, WGMMA_FP8], [MMA, WGMMA, FROM_FP8], (2, 3)),
    # Registers change hands; mbarriers alone.
    Fact(r"^GemmWideKernel<.*kWgmma>", [BULK_COPY, COPY_16, WGMMA, SET_REGISTERS], [MMA, LOAD_MATRIX], (0,)),
    Fact(r"^GemmWideKernel<.*kWgmmaFp8>", [BULK_COPY, COPY_16, WGMMA_FP8, SET_REGISTERS], [MMA, WGMMA, FROM_FP8], (0,)),
    # Four for each tile of keys, and one where broken keys were zeroed.
    Fact(r"^MlaAttentionKernel", [COPY_16, LOAD_MATRIX, LOAD_TRANSPOSED, MMA], [WGMMA], (5,)),
    Fact(r"^MlaWideKernel", [COPY_16, WGMMA], [LOAD_MATRIX, LOAD_TRANSPOSED], None),
    Fact(r"^(MlaStoreKv|RmsNorm|SiluMul|Rope|Embed|ExpertCombine)Kernel", [LOAD_16, STORE_16], [], None),
    Fact(r"^GatherRowsKernel<uint4>", [LOAD_16, STORE_16], [], None),
    Fact(r"^(SampleTokens|RoundRows)Kernel", [LOAD_16], [], None),
)

COUNTED = re.compile(r"LDG|STG|LDGSTS|LDSM|HMMA|HGMMA|QGMMA|UBLKCP|UTMA|BAR|LDL|STL|ATOM|RED|CALL")


def find_nvdisasm():
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    beside = os.path.join(os.path.dirname(os.path.realpath(nvcc)), "nvdisasm")
    for candidate in (os.environ.get("NVDISASM"), shutil.which("nvdisasm"), beside):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    return None


class Block:
    """Instructions that run one after another."""

    def __init__(self):
        self.names = []
        self.next = []
        self.before = []


def blocks_of(lines):
    """The basic blocks of one kernel's listing, with their successors."""
    blocks = [Block()]
    at_label = {}
    jumps = []
    falls = True  # into the next block
    for line in lines:
        label = re.match(r"(\.L_\w+):", line)
        instruction = re.match(r"\s+/\*[0-9a-f]+\*/\s+(@\S+ )?\s*([\w.]+)(.*)", line)
        if label or (instruction and not falls) or (instruction and jumps and jumps[-1][0] is blocks[-1]):
            if blocks[-1].names or label:
                blocks.append(Block())
                if falls:
                    blocks[-2].next.append(blocks[-1])
            falls = True
        if label:
            at_label[label[1]] = blocks[-1]
        if not instruction:
            continue
        guard, name, operands = instruction.groups()
        blocks[-1].names.append(name)
        if not name.startswith("BSSY"):
            jumps += [(blocks[-1], target) for target in re.findall(r"\.L_\w+", operands)]
        always = not guard and not re.match(r"\s*!?U?P\d", operands)
        if always and re.fullmatch(r"EXIT|BRA(\.U)?|BRXU?|RET\.\w+\.NODEC", name):
            falls = False
    for block, label in jumps:
        block.next.append(at_label[label])
    for block in blocks:
        for after in block.next:
            after.before.append(block)
    return blocks


def dominators(blocks):
    """For each block the set of blocks, as bits, that every path to it passes."""
    index = {block: i for i, block in enumerate(blocks)}
    everything = (1 << len(blocks)) - 1
    found = [1] + [everything] * (len(blocks) - 1)
    changed = True
    while changed:
        changed = False
        for i, block in enumerate(blocks[1:], 1):
            common = everything if block.before else 0
            for before in block.before:
                common &= found[index[before]]
            common |= 1 << i
            changed |= common != found[i]
            found[i] = common
    return index, found


def loops(blocks):
    """The bodies of the loops, as sets of blocks, the smallest first."""
    index, found = dominators(blocks)
    bodies = {}
    for block in blocks:
        for head in block.next:
            if not found[index[block]] >> index[head] & 1:
                continue
            body = bodies.setdefault(head, {head})
            waiting = [block]
            while waiting:
                inside = waiting.pop()
                if inside not in body:
                    body.add(inside)
                    waiting += inside.before
    return sorted(bodies.values(), key=len)


def barriers_beside(blocks, tensor):
    """The most barriers whose innermost loop is also that of a tensor-core instruction."""
    seen = set()
    most = 0
    for body in loops(blocks):
        names = [name for block in body - seen for name in block.names]
        if any(re.fullmatch(tensor, name) for name in names):
            most = max(most, sum(name.startswith("BAR.") for name in names))
        seen |= body
    return most


def listings(nvdisasm, cubin):
    """The architecture of a cubin, and (symbol, lines) of each of its kernels."""
    done = subprocess.run([nvdisasm, "-c", str(cubin)], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    text = done.stdout
    if done.returncode != 0:
        raise resources.Failure(f"{nvdisasm} cannot read {cubin}: {text[:200]}")
    arch = re.search(r"\.target\s+(\w+)", text)[1]
    return arch, [(part.split(":", 1)[0], part.splitlines())
                  for part in re.split(r"^\.text\.", text, flags=re.M)[1:]]


def complaints(kernel, blocks):
    names = collections.Counter(name for block in blocks for name in block.names)
    for fact in FACTS:
        if not re.search(fact.kernels, kernel):
            continue
        for wanted in fact.required:
            if not any(re.fullmatch(wanted, name) for name in names):
                yield f"has no {wanted}"
        for unwanted in fact.forbidden:
            for name in filter(re.compile(unwanted).fullmatch, names):
                yield f"has {names[name]} {name}"
        if fact.barriers:
            barriers = barriers_beside(blocks, TENSOR)
            if barriers not in fact.barriers:
                meant = " or ".join(map(str, fact.barriers))
                yield f"has {barriers} barriers in the loop that multiplies; {meant} are meant"


def counts(blocks):
    names = collections.Counter(name for block in blocks for name in block.names)
    barriers = barriers_beside(blocks, TENSOR)
    return " ".join(f"{name}={names[name]}" for name in sorted(names)
                    if COUNTED.match(name)) + f" barriers_in_loop={barriers}"


def main(arguments):
    show = arguments[:1] == ["--counts"]
    folder, *sources = arguments[1:] if show else arguments
    nvdisasm = find_nvdisasm()
    if not nvdisasm:
        print("skipped: nvdisasm was not found (tools/kernel_sass.py says where to get it)")
        return 77
    wrong = []
    unused = {fact.kernels for fact in FACTS}
    try:
        for source in sources:
            for cubin in sorted(resources.kept_folder(folder, source).glob("*.cubin")):
                arch, kernels = listings(nvdisasm, cubin)
                names = resources.readable(symbol for symbol, _ in kernels)
                for symbol, lines in kernels:
                    kernel = names[symbol]
                    unused -= {pattern for pattern in unused if re.search(pattern, kernel)}
                    if arch not in resources.launched_on(kernel):
                        continue
                    blocks = blocks_of(lines)
                    wrong += [f"{source}: {kernel} on {arch} {what}" for what in complaints(kernel, blocks)]
                    if show:
                        print(f"{source} {kernel} {arch}: {counts(blocks)}")
    except resources.Failure as failure:
        wrong.append(str(failure))
    wrong += [f"no kernel is named like '{pattern}' (tools/kernel_sass.py)" for pattern in sorted(unused) if not show]
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
