#!/bin/sh
# Tests the CUDA backend on a GPU: the ops against their twins, the model, the engine, the demo model against the
# CPU, NCCL with one rank, a part of it under compute-sanitizer, and the server end to end. Ends with one line: N passed, N failed, N skipped.
#
#   tests/gpu.sh [--build DIR] [--out DIR] [--seconds N]
#   tests/gpu.sh --bundle FILE --build DIR    packs programs and libraries for a machine that cannot build
#
# --build   a build folder or a bundle (.tar.xz); without it the tests are built first, in build/gpu, without the server
# --out     where logs and results go; default build/gpu-test
# --seconds for all of it; default 570
#
# Exit code 0 where something passed and nothing failed, 77 where all was skipped.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tools/gpu_common.sh"
build='' out=$root/build/gpu-test seconds=570 bundle=''
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=$2 && shift 2 ;;
    --out) out=$2 && shift 2 ;;
    --seconds) seconds=$2 && shift 2 ;;
    --bundle) bundle=$2 && shift 2 ;;
    *) echo "tests/gpu.sh: unknown flag $1; see its head" >&2 && exit 2 ;;
  esac
done
tests="gpu_ops gpu_model gpu_engine gpu_demo"

if [ -n "$bundle" ]; then
  [ -n "$build" ] || {
    echo "tests/gpu.sh: --bundle needs --build" >&2
    exit 2
  }
  # shellcheck disable=SC2086  # a list of words
  gpu_bundle "$build" "$bundle" $tests gpu_nccl cuda_bench jevons
  exit
fi

# Small shapes of every op: what a sanitizer can do in minutes.
bounded="ElementwiseTest.*:LinearTest.LinearAgreesWithTwinForEveryType*:LinearTest.Grouped*:LinearTest.HeadLinear*"
bounded="$bounded:MlaTest.AttentionAgreesWithTwinAroundBlock*:MlaTest.StoreKv*:MoeTest.*:SampleTest.*"

mkdir -p "$out"
out=$(cd "$out" && pwd)
end=$(($(date +%s) + seconds))
left() { echo $((end - $(date +%s))); }
passed=0 failed=0 skipped=0 failures='' skips=''
pass() { passed=$((passed + 1)); }
fail() {
  failed=$((failed + 1))
  failures="$failures  $1
"
}
skip() {
  skipped=$((skipped + 1))
  skips="$skips  $1: $2
"
}

# LOG PATTERN: the number that a closing line of GoogleTest names.
closing() { sed -n "s/^\[ *$2 *\] \([0-9]*\) test.*/\1/p" "$1" | tail -1; }

# NAME LIMIT: all cases of one program. It reads test data from where it runs: the repository's root.
run_cases() {
  program=$(gpu_find "$build" "$1") || {
    fail "$1 (not in $build)"
    return
  }
  limit=$2
  [ "$(left)" -ge "$limit" ] || limit=$(left)
  [ "$limit" -gt 5 ] || {
    skip "$1" "the time is over"
    return
  }
  echo "== $1"
  code=0
  (cd "$root" && LD_LIBRARY_PATH=$libraries GTEST_OUTPUT="xml:$out/$1.xml" timeout "$limit" "$program") >"$out/$1.txt" 2>&1 || code=$?
  grep -E '^\[ +FAILED +\]|^\[ +(PASSED|SKIPPED) +\] [0-9]+ test|^differences|conversations are' "$out/$1.txt" | head -40 || true
  num_skipped=$(closing "$out/$1.txt" SKIPPED)
  num_failed=$(closing "$out/$1.txt" FAILED)
  num_passed=$(closing "$out/$1.txt" PASSED)
  passed=$((passed + ${num_passed:-0}))
  skipped=$((skipped + ${num_skipped:-0}))
  [ -z "$num_skipped" ] || skips="$skips  $1: $num_skipped cases, the first says: $(sed -n 's/^\(needs .*\)/\1/p; s/.*Skipped *//p' "$out/$1.txt" | grep . | head -1)
"
  if [ -n "$num_failed" ]; then
    failed=$((failed + num_failed - 1))
    fail "$1: $num_failed cases, see $out/$1.txt"
  elif [ "$code" != 0 ]; then
    fail "$1: ended with $code$([ "$code" != 124 ] || echo ', its time was over'), see $out/$1.txt"
  fi
}

# TOOL: the bounded part of the op tests under compute-sanitizer.
run_sanitizer() {
  name=sanitizer_$1
  if ! command -v compute-sanitizer >/dev/null; then
    skip "$name" "compute-sanitizer is missing"
    return
  fi
  limit=$(($(left) / $2))
  [ "$limit" -gt 10 ] || {
    skip "$name" "the time is over"
    return
  }
  echo "== $name, at most $limit s"
  code=0
  (cd "$root" && LD_LIBRARY_PATH=$libraries timeout "$limit" compute-sanitizer --tool "$1" --error-exitcode 86 "$(gpu_find "$build" gpu_ops)" \
    --gtest_filter="$bounded") >"$out/$name.txt" 2>&1 || code=$?
  grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|^\[ +(FAILED|PASSED) +\]' "$out/$name.txt" | head -5 || true
  case "$code" in
    0) pass ;;
    124) skip "$name" "not done after $limit s, nothing found until then: $(grep -c '^\[       OK' "$out/$name.txt") cases" ;;
    *) fail "$name: ended with $code, see $out/$name.txt" ;;
  esac
}

# BACKEND QUESTION: what a server with the demo model answers.
ask_server() {
  log=$out/server_$1.txt
  LD_LIBRARY_PATH=$libraries "$jevons" serve --model "$root/tools/demo_model/checkpoint" --backend "$1" --listen 127.0.0.1:0 >"$log" 2>&1 &
  server=$!
  address=''
  for _ in $(seq 200); do
    address=$(sed -n 's/.*\(127\.0\.0\.1:[1-9][0-9]*\).*/\1/p' "$log" | head -1)
    [ -z "$address" ] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.3
  done
  [ -z "$address" ] || LD_LIBRARY_PATH=$libraries timeout 60 "$jevons" chat --connect "$address" "$2" 2>/dev/null || true
  kill "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
}

run_server() {
  jevons=$(gpu_find "$build" jevons) || {
    skip "server end to end" "jevons is not in $build"
    return
  }
  echo "== server end to end"
  cuda=$(ask_server cuda "What is 347 * 86?")
  cpu=$(ask_server cpu "What is 347 * 86?")
  printf '%s\n' "$cuda" >"$out/answer_cuda.txt"
  printf '%s\n' "$cpu" >"$out/answer_cpu.txt"
  case "$cuda" in
    *29842*) pass ;;
    *) fail "server end to end: the answer of the device lacks 29842, see $out/answer_cuda.txt and server_cuda.txt" ;;
  esac
  [ "$cuda" = "$cpu" ] || echo "the answers of device and CPU differ: see $out/answer_*.txt"
}

gpu_say_what_is_there
if [ -z "$build" ]; then
  # shellcheck disable=SC2086  # a list of words
  gpu_build "$root" "$root/build/gpu" "$out/build.log" "$(left)" $tests
  build=$root/build/gpu
  # There is no such target without NCCL.
  cmake --build "$build" --target gpu_nccl >>"$out/build.log" 2>&1 || true
fi
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
build=$(gpu_unpack "$build" "$unpacked")
libraries=$(gpu_library_path "$build")
for test in $tests; do run_cases "$test" 150; done
if gpu_find "$build" gpu_nccl >/dev/null; then
  run_cases gpu_nccl 60
else
  skip gpu_nccl "built without NCCL"
fi
if grep -q 'needs a CUDA device' "$out/gpu_ops.txt" 2>/dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do skip "sanitizer_$tool" "no device"; done
  skip "server end to end" "no device"
else
  run_server
  # Of the time that is left each gets an equal part.
  run_sanitizer memcheck 4
  run_sanitizer racecheck 3
  run_sanitizer synccheck 2
  run_sanitizer initcheck 1
fi

[ -z "$failures" ] || printf '\nFailed:\n%s' "$failures"
[ -z "$skips" ] || printf '\nSkipped:\n%s' "$skips"
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped" | tee "$out/summary.txt"
[ "$failed" = 0 ] || exit 1
[ "$passed" -gt 0 ] || exit 77
