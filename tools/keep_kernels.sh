#!/bin/sh
# Runs nvcc as it is told to and keeps in OBJECT.kept what the checks of the kernels read
# (tools/kernel_resources.py, tools/kernel_sass.py): the assembler's report, the PTX and the cubins.
#
#   tools/keep_kernels.sh NVCC ARGUMENT... -o OBJECT ...
set -eu

object='' previous=''
for argument in "$@"; do
  [ "$previous" != -o ] || object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"

kept=$object.kept
rm -rf "$kept"
mkdir -p "$kept"
status=0
"$@" --keep --keep-dir "$kept" 2>"$kept/report.txt" || status=$?
# Warnings and errors are for the reader; the rest stays in the report.
grep -v -e '^ptxas info' -e 'bytes stack frame' "$kept/report.txt" >&2 || true
find "$kept" -type f ! -name '*.ptx' ! -name '*.cubin' ! -name report.txt -delete
[ "$status" = 0 ] || rm -rf "$kept"
exit "$status"
