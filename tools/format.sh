#!/bin/sh
# Formats the C++ sources with clang-format 14, or with --check says which are not formatted.
# With another version of clang-format it does nothing and exits 77, which ctest counts as a skip.
set -eu
cd "$(dirname "$0")/.."
want=14

formatter=
for candidate in "clang-format-$want" clang-format; do
  version=$("$candidate" --version 2>/dev/null | sed -n 's/.*version \([0-9]*\).*/\1/p') || true
  if [ "$version" = "$want" ]; then
    formatter=$candidate
    break
  fi
done
if [ -z "$formatter" ]; then
  echo "skipped: needs clang-format $want (package clang-format-$want), found ${version:-none}"
  exit 77
fi

# Tracked and new files where git knows them; every source file of an unpacked archive.
list() {
  git ls-files -z --cached --others --exclude-standard -- '*.h' '*.cc' '*.cu' 2>/dev/null ||
    find . -path ./build -prune -o \( -name '*.h' -o -name '*.cc' -o -name '*.cu' \) -print0
}
if [ "${1:-}" = --check ]; then
  output=$(list | xargs -0 -r -n 20 -P "$(nproc)" "$formatter" --dry-run 2>&1) || {
    printf '%s\n' "$output"
    exit 1
  }
  wrong=$(printf '%s\n' "$output" | sed -n 's/^\([^: ]*\):[0-9]*:[0-9]*: warning.*/\1/p' | sort -u)
  [ -n "$wrong" ] || exit 0
  printf 'not formatted; run make format:\n%s\n' "$wrong"
  exit 1
fi
list | xargs -0 -r -n 20 -P "$(nproc)" "$formatter" -i
