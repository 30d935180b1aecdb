#!/bin/sh
# Feeds test_summary.sh with results of every kind and compares the closing line and the exit code.
#
#   tools/test_summary_test.sh SCRATCH_FOLDER
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
scratch=$1

start() {
  rm -rf "$scratch"
  mkdir -p "$scratch/test-results"
  printf '%s\n' "$@" >"$scratch/gtest_tests.txt"
  echo '<testsuite>' >"$scratch/test-results/ctest.junit"
}

# gtest NAME CASE...: a result file; each case is its name and, after a colon, skip or fail.
gtest() {
  file=$scratch/test-results/$1.xml
  shift
  printf '<testsuites tests="1">\n  <testsuite name="S">\n' >"$file"
  for entry in "$@"; do
    name=${entry%%:*}
    case "$entry" in
      *:fail) printf '    <testcase name="%s" status="run" result="completed" classname="S">\n      <failure message="a.cc:1&#x0A;no" type=""><![CDATA[a.cc:1\nno]]></failure>\n      <failure message="twice" type=""></failure>\n    </testcase>\n' "$name" ;;
      *:skip) printf '    <testcase name="%s" status="run" result="skipped" classname="S">\n      <skipped message="a.cc:1&#x0A;needs &quot;x&quot;"><![CDATA[a.cc:1]]></skipped>\n    </testcase>\n' "$name" ;;
      *) printf '    <testcase name="%s" status="run" result="completed" classname="S" />\n' "$name" ;;
    esac
  done >>"$file"
  printf '  </testsuite>\n</testsuites>\n' >>"$file"
}

# ctest NAME STATUS [SKIP_MESSAGE [OUTPUT]]
ctest() {
  printf '\t<testcase name="%s" classname="%s" time="0" status="%s">\n' "$1" "$1" "$2"
  [ -z "${3:-}" ] || printf '\t\t<skipped message="%s"/>\n' "$3"
  printf '\t\t<system-out>%s\n</system-out>\n\t</testcase>\n' "${4:-}"
} >>"$scratch/test-results/ctest.junit"

expect() {
  want_code=$1 want_line=$2
  code=0
  output=$("$tools/test_summary.sh" "$scratch") || code=$?
  line=$(printf '%s\n' "$output" | tail -n 1)
  if [ "$code" != "$want_code" ] || [ "$line" != "$want_line" ]; then
    printf 'expected %s, exit code %s; got:\n%s\nexit code %s\n' "$want_line" "$want_code" "$output" "$code"
    exit 1
  fi
  shift 2
  for text in "$@"; do
    printf '%s\n' "$output" | grep -qF "$text" || {
      printf 'the summary does not say: %s\n%s\n' "$text" "$output"
      exit 1
    }
  done
}

start a b
gtest a One Two Three:skip
gtest b One
ctest a run
ctest b run
ctest script run
ctest other_script notrun SKIP_RETURN_CODE=77 "skipped: needs clang-format 14"
expect 0 "4 passed, 0 failed, 2 skipped" 'a S.Three: needs "x"' "other_script: needs clang-format 14"

start a
gtest a One Two:fail Three
ctest a fail
expect 1 "2 passed, 1 failed, 0 skipped" "a S.Two"

# A program that ends badly after its last case, one that ends too early, one that is not there, a timeout.
start a b c d
gtest a One
ctest a fail
ctest b run
ctest c notrun "Unable to find executable"
ctest d fail
expect 1 "1 passed, 4 failed, 0 skipped" "a (the program itself" "b (left no results)" "c (" "d ("

start a
gtest a One:skip
ctest a run
expect 1 "0 passed, 0 failed, 1 skipped"

start a
rm "$scratch/gtest_tests.txt"
: >"$scratch/gtest_tests.txt"
expect 1 "0 passed, 1 failed, 0 skipped" "no test ran"
rm -rf "$scratch"
