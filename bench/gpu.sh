#!/bin/sh
# Measures a GPU: what it can do, what the kernels and a whole model get of it, and the same model in PyTorch
# where that is there. See "On a GPU" in docs/performance.md.
#
#   bench/gpu.sh [--build DIR] [--out DIR] [--seconds N] [-- FLAGS of cuda_bench]
#
# --build   a build folder, or a bundle of tests/gpu.sh --bundle; without it cuda_bench is built first, in build/gpu
# --out     where the JSON lines and logs go; default build/gpu-bench
# --seconds for all of it; default 570
#
# It only reads the state of the device: clocks, power limit and modes stay as they are.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tools/gpu_common.sh"
build='' out=$root/build/gpu-bench seconds=570
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=$2 && shift 2 ;;
    --out) out=$2 && shift 2 ;;
    --seconds) seconds=$2 && shift 2 ;;
    --) shift && break ;;
    *) echo "bench/gpu.sh: unknown flag $1; see its head" >&2 && exit 2 ;;
  esac
done
mkdir -p "$out"
end=$(($(date +%s) + seconds))
left() { echo $((end - $(date +%s))); }

gpu_say_what_is_there
if [ -z "$build" ]; then
  gpu_build "$root" "$root/build/gpu" "$out/build.log" "$(left)" cuda_bench
  build=$root/build/gpu
fi
unpacked=$(mktemp -d)
build=$(gpu_unpack "$build" "$unpacked")
bench=$(gpu_find "$build" cuda_bench) || {
  echo "cuda_bench is not in $build"
  exit 1
}
libraries=$(gpu_library_path "$build")
# SECONDS ARGUMENT...
run_bench() {
  limit=$1
  shift
  LD_LIBRARY_PATH=$libraries timeout "$limit" "$bench" "$@"
}

# Clocks, power and temperature once a second, beside the times.
sampler=''
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu \
    --format=csv --loop=1 >"$out/device.csv" 2>&1 &
  sampler=$!
fi
trap 'rm -rf "$unpacked"; [ -z "$sampler" ] || kill "$sampler" 2>/dev/null || true' EXIT

status=0
# PyTorch gets the last quarter.
run_bench "$(left)" --json "$out/cuda_bench.jsonl" --seconds "$(($(left) * 3 / 4))" "$@" >"$out/cuda_bench.txt" 2>&1 ||
  status=$?
cat "$out/cuda_bench.txt"
# A kernel that goes wrong takes the rest of its process with it: each failed case once more, alone.
if [ "$status" = 1 ] && [ -s "$out/cuda_bench.jsonl" ]; then
  sed -n 's/.*"name": "\([^"]*\)", "error".*/\1/p' "$out/cuda_bench.jsonl" | while read -r name; do
    [ "$(left)" -gt 60 ] || break
    file=$out/alone_$(echo "$name" | tr / _)
    echo "== $name alone"
    run_bench "$(left)" --filter "$name" --json "$file.jsonl" --seconds 60 >"$file.txt" 2>&1 || true
    grep -v -e '^device/' -e '^determinism' "$file.txt" || true
  done
fi

python=$(gpu_python) || python=''
if [ "$status" = 77 ]; then
  echo "PyTorch baseline: skipped: no device"
elif [ -z "$python" ]; then
  echo "PyTorch baseline: skipped: no python3 with torch"
elif [ "$(left)" -lt 30 ]; then
  echo "PyTorch baseline: left out: the time is over"
else
  timeout "$(left)" "$python" "$root/bench/torch_baseline.py" --json "$out/torch_baseline.jsonl" \
    --seconds "$(($(left) - 10))" >"$out/torch_baseline.txt" 2>&1 || echo "PyTorch baseline: ended with $?"
  cat "$out/torch_baseline.txt"
fi
echo "rows and logs are in $out"
exit "$status"
