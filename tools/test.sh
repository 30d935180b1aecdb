#!/bin/sh
# Builds everything, runs every test and check, and ends with one line: N passed, N failed, N skipped.
#
#   tools/test.sh [PRESET]        dev by default; asan, tsan and clang are the others
set -eu
cd "$(dirname "$0")/.."
preset=${1:-dev}
build=build
[ "$preset" = dev ] || build=build/$preset
results=$build/test-results

# A step before the tests that goes wrong is one failure, and the closing line says so too.
give_up() {
  printf '\nFailed:\n  %s\n\n0 passed, 1 failed, 0 skipped\n' "$1"
  exit 1
}

compiler=
[ "$preset" != clang ] || compiler=clang
tools/setup.sh $compiler || give_up "set-up"
jobs=$(tools/jobs.sh)
cmake --preset "$preset" || give_up "configure"
cmake --build "$build" -j "$jobs" || give_up "build"

rm -rf "$results"
mkdir -p "$results"
status=0
ctest --test-dir "$build" -j "$jobs" --output-on-failure --output-junit test-results/ctest.junit || status=$?

shared=$(sed -n 's/^JEVONS_SHARED_DIR:PATH=//p' "$build/CMakeCache.txt")
state=missing
[ ! -d "$shared" ] || state=there
[ -s "$results/ctest.junit" ] || give_up "ctest (no results)"
JEVONS_SHARED_STATE=$state tools/test_summary.sh "$build" || status=1
exit "$status"
