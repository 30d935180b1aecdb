#!/bin/sh
# Adds up one test run and prints what failed, what was skipped and why, and one closing line.
#
#   tools/test_summary.sh BUILD_DIR
#
# Reads BUILD_DIR/test-results: ctest.junit (one entry a ctest) and NAME.xml (the cases of GoogleTest binary NAME).
# BUILD_DIR/gtest_tests.txt lists the GoogleTest binaries: one that left no NAME.xml has failed, whatever it returned.
# Exits 0 if something passed and nothing failed.
set -eu
build=$1
results=$build/test-results

{
  sed 's/^/expect /' "$build/gtest_tests.txt"
  for file in "$results"/*.xml; do
    [ -e "$file" ] || continue
    name=${file##*/}
    sed "s/^/${name%.xml} /" "$file"
  done
  sed 's/^/ctest /' "$results/ctest.junit"
} | awk -v shared="${JEVONS_SHARED_STATE:-}" '
  function attribute(name,    found) {
    if (!match($0, "[ \t]" name "=\"[^\"]*\"")) return ""
    found = substr($0, RSTART + 1, RLENGTH - 2)
    sub(/^[a-z_]*="/, "", found)
    return plain(found)
  }
  function plain(text) {
    gsub(/&lt;/, "<", text); gsub(/&gt;/, ">", text); gsub(/&quot;/, "\"", text)
    gsub(/&apos;/, "\047", text); gsub(/&#x0A;/, " ", text); gsub(/&amp;/, "\\&", text)
    return text
  }
  function pass() { passed++ }
  function fail(what) { failed++; failures = failures "  " what "\n" }
  function skip(what, why) { skipped++; skips = skips "  " what ": " (why == "" ? "no reason given" : why) "\n" }
  function end_case() {
    if (case_name == "") return
    if (case_state == "failed") { fail(case_name); failed_in[binary]++ }
    else if (case_state == "skipped") skip(case_name, case_reason)
    else pass()
    cases[binary]++
    case_name = ""
  }
  function end_ctest() {
    if (test_name == "") return
    if (test_status == "fail" || (test_status == "notrun" && !test_may_skip)) {
      if (failed_in[test_name] == 0) fail(test_name " (the program itself; see above)")
    } else if (test_name in expected) {
      if (cases[test_name] == 0) fail(test_name " (left no results)")
    } else if (test_status == "run") pass()
    else skip(test_name, test_reason)
    test_name = ""
  }

  $1 == "expect" { expected[$2] = 1; next }

  $1 != "ctest" {
    tag = $2
    if (tag == "<testcase") {
      end_case()
      binary = $1
      case_name = $1 " " attribute("classname") "." attribute("name")
      case_state = "passed"; case_reason = ""
      if (attribute("result") == "skipped") case_state = "skipped"
      if (attribute("status") == "notrun") { case_state = "skipped"; case_reason = "disabled in the source" }
    } else if (tag == "<failure") case_state = "failed"
    else if (tag == "<skipped") {
      case_reason = attribute("message")
      sub(/^[^ ]*:[0-9]+ */, "", case_reason)
    } else if (tag == "<property" && attribute("name") == "needs_shared") { used++; parts[attribute("value")]++ }
    else if (tag == "</testsuites>") end_case()
    next
  }

  {
    if (!junit_began) { end_case(); junit_began = 1 }
    tag = $2
    if (tag == "<testcase") {
      end_ctest()
      test_name = attribute("name"); test_status = attribute("status")
      test_may_skip = 0; test_reason = ""
    } else if (tag == "<skipped" && attribute("message") ~ /^(SKIP_RETURN_CODE|SKIP_REGULAR)/) test_may_skip = 1
    else if (/skipped: /) { test_reason = plain($0); sub(/.*skipped: /, "", test_reason); sub(/<\/system-out>.*/, "", test_reason) }
  }

  END {
    end_case(); end_ctest()
    if (passed + failed + skipped == 0) fail("no test ran")
    if (failed) printf "\nFailed:\n%s", failures
    if (skipped) printf "\nSkipped:\n%s", skips
    printf "\nThe larger test data in ../shared is %s: ", shared
    printf shared == "there" ? "%d test cases used it\n" : "%d test cases want it and were skipped\n", used
    fflush()
    if (used) for (part in parts) printf "  %s (%d)\n", part, parts[part] | "sort"
    close("sort")
    printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped
    exit failed > 0 || passed == 0
  }'
