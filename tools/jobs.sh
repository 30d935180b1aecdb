#!/bin/sh
# Prints how many compilers to run at once: one a CPU, but not more than memory has room for.
set -eu
kib_per_job=1500000

cpus=$(nproc 2>/dev/null || echo 1)
free_kib=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo 2>/dev/null || true)
limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || true)
case "$limit" in
  '' | max | *[!0-9]*) ;;
  *) [ "$((limit / 1024))" -ge "${free_kib:-0}" ] || free_kib=$((limit / 1024)) ;;
esac
jobs=$((${free_kib:-$kib_per_job} / kib_per_job))
[ "$jobs" -lt "$cpus" ] || jobs=$cpus
[ "$jobs" -ge 1 ] || jobs=1
echo "$jobs"
