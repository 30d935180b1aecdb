#!/usr/bin/env python3
"""What nvcc says of every kernel on every architecture: docs/kernels/resources.md.

  tools/kernel_resources.py [--check] FOLDER SOURCE...

FOLDER is below which tools/keep_kernels.sh has kept SOURCE.o.kept for each source. Fails where a kernel
spills registers, has local memory, lacks an architecture, or nvcc warns that it will be slow.
Without --check it then writes the table; with it, it fails where the table says something else, and
exits 77 (a skip) where the table is of another version of nvcc.
"""

import difflib
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs/kernels/resources.md"
RENEW = "cmake --build build --target kernel_resources"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
# Kernels that are launched on one architecture alone. On the others they trap.
ONLY_ON = ((re.compile(r"\bkWgmma(Fp8)?\b|^MlaWideKernel"), "sm_90a"),)

# One multiprocessor, the same on all three architectures.
REGISTERS = 65536
SCHEDULERS = 4
MOST_WARPS = 64
MOST_BLOCKS = 32
REGISTER_UNIT = 256  # registers come to a warp in units of so many

HEAD = """# What nvcc {version} makes of the kernels

Written by `{renew}`. The test `check_kernel_resources` compares it with the
build, and fails where a kernel spills registers or has local memory. `spills` are bytes of stores / loads and `local`
bytes of a thread, `smem` static bytes of a block; `threads` are the most of a block. `blocks` and `warps` are what one
multiprocessor holds as far as registers and threads decide: shared memory is chosen at launch and may allow fewer.
Kernels with `kWgmma` or `kWgmmaFp8`, and `MlaWideKernel`, are launched on sm_90a alone.
"""


class Failure(Exception):
    """What is wrong, for the reader of the test's output."""


def launched_on(kernel):
    """The architectures on which a kernel is launched."""
    return next(((only,) for pattern, only in ONLY_ON if pattern.search(kernel)), ARCHITECTURES)


def enumerators():
    """{("GemmAtom", "1"): "kMmaSync", ...} of the enums that count from 0 in headers of cuda/."""
    names = {}
    for header in sorted((ROOT / "cuda").glob("*.h")):
        text = re.sub(r"//.*", "", header.read_text())
        for enum, body in re.findall(r"enum class (\w+)[^{;]*\{([^}]*)\}", text):
            for value, name in enumerate(re.findall(r"\w+", re.sub(r"=[^,]*", "", body))):
                names[enum, str(value)] = name
    return names


def readable(symbols):
    """{symbol: name with template arguments, without namespaces and parameters}."""
    symbols = sorted(set(symbols))
    done = subprocess.run(["c++filt", "-p"], input="\n".join(symbols), text=True, check=True,
                          stdout=subprocess.PIPE)
    known = enumerators()
    names = {}
    for symbol, name in zip(symbols, done.stdout.splitlines()):
        name = name.replace("(anonymous namespace)::", "").replace("> >", ">>")
        name = re.sub(r"\bjevons::(cuda::|device::)?", "", name)
        names[symbol] = re.sub(r"\((\w+)\)(\d+)",
                               lambda m: known.get((m[1], m[2]), m[0]), name)
    return names


def kept_folder(folder, source):
    kept = pathlib.Path(folder) / f"{source}.o.kept"
    if not (kept / "report.txt").is_file():
        raise Failure(f"{kept} is missing: build the target jevons_cuda")
    return kept


def number(pattern, text, default=None):
    """The sum of the numbers that a report gives with some words."""
    found = re.findall(pattern, text)
    if not found and default is None:
        raise Failure(f"nvcc's report has no '{pattern}': {text[:200]}")
    return sum(int(value) for value in found) if found else default


def read_source(folder, source):
    """One dict for each kernel and architecture of a source, and the version of nvcc."""
    kept = kept_folder(folder, source)
    threads = {}
    version = None
    for ptx in sorted(kept.glob("*.ptx")):
        text = ptx.read_text()
        version = re.search(r"release \S+, V(\S+)", text)[1]
        for symbol, directives in re.findall(r"\.entry (\w+)\(([^{]*)", text):
            bound = re.search(r"\.maxntid (\d+)", directives)
            if not bound:
                raise Failure(f"{source}: {symbol} has no __launch_bounds__")
            threads[symbol] = int(bound[1])
    rows = []
    report = (kept / "report.txt").read_text()
    slow = re.search(r".*Potential Performance Loss.*", report)
    if slow:
        raise Failure(f"{source}: {slow[0]}")
    for part in report.split("Compiling entry function ")[1:]:
        symbol, arch = re.match(r"'(\w+)' for '(\w+)'", part).groups()
        rows.append({"symbol": symbol, "arch": arch, "threads": threads[symbol],
                     "registers": number(r"Used (\d+) registers", part),
                     "stores": number(r"(\d+) bytes spill stores", part),
                     "loads": number(r"(\d+) bytes spill loads", part),
                     "local": number(r"(\d+) bytes stack frame", part),
                     "smem": number(r"(\d+) bytes smem", part, 0)})
    if not rows:
        raise Failure(f"{source}: nvcc reported no kernel (is -Xptxas=-v given?)")
    return rows, version


def blocks_per_sm(registers, threads):
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // SCHEDULERS // per_warp * SCHEDULERS // warps
    return min(by_registers, MOST_WARPS // warps, MOST_BLOCKS)


def read_kernels(folder, sources):
    """{source: {kernel: {architecture: row}}} of what is launched, and the version of nvcc."""
    table = {}
    versions = set()
    read = {source: read_source(folder, source) for source in sources}
    names = readable(row["symbol"] for rows, _ in read.values() for row in rows)
    for source, (rows, version) in read.items():
        versions.add(version)
        kernels = table.setdefault(pathlib.PurePath(source).name, {})
        for row in rows:
            name = names[row["symbol"]]
            built = kernels.setdefault(name, {})
            if row["arch"] in launched_on(name):
                built[row["arch"]] = row
    if len(versions) != 1:
        raise Failure(f"the sources were built by several versions of nvcc: {sorted(versions)}")
    return table, versions.pop()


def complaints(table):
    for source, kernels in table.items():
        for name, rows in kernels.items():
            for arch in launched_on(name):
                if arch not in rows:
                    yield f"{source}: {name} is not built for {arch}"
                    continue
                row = rows[arch]
                if row["stores"] or row["loads"] or row["local"]:
                    yield (f"{source}: {name} on {arch}: {row['stores']} bytes spill stores, "
                           f"{row['loads']} bytes spill loads, {row['local']} bytes local memory")


def natural(name):
    """Sorts Traits<8> before Traits<32>."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def text_of(table, version):
    lines = [HEAD.format(version=version, renew=RENEW)]
    for source, kernels in table.items():
        lines += [f"## {source}", "",
                  "| kernel | architecture | registers | spills | local | smem | threads | blocks | warps |",
                  "|---|---|---:|---:|---:|---:|---:|---:|---:|"]
        for name in sorted(kernels, key=natural):
            for arch in launched_on(name):
                row = kernels[name][arch]
                blocks = blocks_per_sm(row["registers"], row["threads"])
                warps = blocks * -(-row["threads"] // 32)
                lines.append(f"| `{name}` | {arch} | {row['registers']} | {row['stores']} / {row['loads']} "
                             f"| {row['local']} | {row['smem']} | {row['threads']} | {blocks} "
                             f"| {warps} of {MOST_WARPS} |")
        lines.append("")
    return "\n".join(lines)


def compare(text, version):
    """The exit code for a table that should say `text`."""
    old = TABLE.read_text() if TABLE.is_file() else ""
    if old == text:
        return 0
    old_version = re.match(r"# What nvcc (\S+) ", old)
    if old_version and old_version[1] != version:
        print(f"skipped: {TABLE.name} is of nvcc {old_version[1]}, this is {version}; "
              "no kernel spills, no architecture is missing")
        return 77
    print("\n".join(difflib.unified_diff(old.splitlines(), text.splitlines(),
                                         f"docs/kernels/{TABLE.name}", "this build", "", "", 0, "")))
    print(f"\ndocs/kernels/{TABLE.name} is not what nvcc says now. Renew it: {RENEW}")
    return 1


def main(arguments):
    check = arguments[:1] == ["--check"]
    folder, *sources = arguments[1:] if check else arguments
    try:
        table, version = read_kernels(folder, sources)
        wrong = list(complaints(table))
        if wrong:
            raise Failure("\n".join(wrong))
    except Failure as failure:
        print(failure)
        return 1
    text = text_of(table, version)
    if check:
        return compare(text, version)
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
