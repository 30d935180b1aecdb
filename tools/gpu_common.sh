# shellcheck shell=sh
# What bench/gpu.sh and tests/gpu.sh share: sourced, not run.

# Tools and libraries, each with what it is for, and what cannot be done without it.
gpu_say_what_is_there() {
  echo "== what is here"
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv,noheader 2>&1 |
      sed 's/^/device: /'
  else
    echo "device: nvidia-smi is missing"
  fi
  PATH=$PATH:/usr/local/cuda/bin:/opt/nvidia/nsight-compute
  export PATH
  gpu_tool nvcc "building the kernels" "nvcc --version | sed -n 's/.*release //p'"
  gpu_tool cmake "building" "cmake --version | head -1"
  gpu_tool ninja "building" "ninja --version"
  gpu_tool g++ "building" "g++ -dumpfullversion"
  gpu_tool compute-sanitizer "looking for races and bad memory" "compute-sanitizer --version | sed -n 's/.*Version //p'"
  gpu_tool nsys "a timeline of a step" "nsys --version | head -1"
  if python=$(gpu_python); then
    echo "torch: $("$python" -c 'import torch; print(torch.__version__, "CUDA", torch.version.cuda)')"
  else
    echo "torch: missing (no PyTorch baseline)"
  fi
  gpu_missing=$(gpu_missing_packages)
  if [ -z "$gpu_missing" ]; then
    echo "libraries: all that the build needs"
  else
    echo "libraries: missing $gpu_missing(no build here: give a bundle with --build)"
  fi
}

# NAME PURPOSE VERSION-COMMAND
gpu_tool() {
  if command -v "$1" >/dev/null; then
    echo "$1: $(sh -c "$3" 2>/dev/null || echo there)"
  else
    echo "$1: missing ($2)"
  fi
}

# A python3 with PyTorch and CUDA.
gpu_python() {
  for candidate in python3 python; do
    if "$candidate" -c 'import torch; assert torch.version.cuda' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# Debian's names of the packages that a build without the server wants and that are not found.
gpu_missing_packages() {
  command -v g++ >/dev/null || {
    printf 'g++ '
    return
  }
  while read -r package header; do
    printf '#include <%s>\n' "$header" | g++ -std=c++20 -DPCRE2_CODE_UNIT_WIDTH=8 -E -x c++ - >/dev/null 2>&1 || printf '%s ' "$package"
  done <<HEADERS
libabsl-dev absl/status/statusor.h
libspdlog-dev spdlog/spdlog.h
nlohmann-json3-dev nlohmann/json.hpp
libhwy-dev hwy/highway.h
libpcre2-dev pcre2.h
libgtest-dev gtest/gtest.h
libgmock-dev gmock/gmock.h
libbenchmark-dev benchmark/benchmark.h
HEADERS
}

# ROOT BUILD LOG SECONDS TARGET...: configures for CUDA without the server and builds. Ends the script where that fails.
gpu_build() {
  source=$1 folder=$2 log=$3 limit=$4
  shift 4
  missing=$(gpu_missing_packages)
  [ -z "$missing" ] || {
    echo "cannot build here: missing $missing; give a bundle with --build"
    exit 1
  }
  echo "== building $* in $folder"
  if ! {
    cmake -S "$source" -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DJEVONS_CUDA=ON -DJEVONS_SERVER=OFF &&
      timeout "$limit" cmake --build "$folder" -j "$("$source/tools/jobs.sh")" --target "$@"
  } >"$log" 2>&1; then
    tail -20 "$log"
    echo "the build failed or took more than $limit s; $log has all of it"
    exit 1
  fi
}

# BUILD NAME: the path of a program in a build folder or a bundle.
gpu_find() {
  for place in bin bench tests/gpu .; do
    if [ -x "$1/$place/$2" ] && [ -f "$1/$place/$2" ]; then
      echo "$1/$place/$2"
      return
    fi
  done
  return 1
}

# BUILD: where its programs find libraries: those of a bundle first; those of a PyTorch installation stand in for a
# toolkit's cuBLASLt. To be set for these programs alone.
gpu_library_path() {
  path=''
  [ ! -d "$1/lib" ] || path=$(cd "$1/lib" && pwd)
  if [ ! -e /usr/local/cuda/lib64/libcublasLt.so ] && python=$(gpu_python); then
    found=$("$python" -c 'import glob, os, torch
root = os.path.dirname(os.path.dirname(torch.__file__))
print(":".join(sorted({os.path.dirname(f) for f in glob.glob(root + "/nvidia/*/lib/libcublasLt.so.*")})))' 2>/dev/null) || found=''
    path=$path${path:+${found:+:}}$found
  fi
  echo "$path${LD_LIBRARY_PATH:+${path:+:}$LD_LIBRARY_PATH}"
}

# BUILD FOLDER: where the programs are: BUILD, or FOLDER if BUILD is a bundle, which is unpacked there.
gpu_unpack() {
  if [ -f "$1" ]; then
    tar -xJf "$1" -C "$2"
    echo "$2"
  else
    (cd "$1" && pwd)
  fi
}

# BUILD BUNDLE NAME...: packs those of the programs that are in the build folder, without symbols, with the shared libraries
# that a bare system lacks, into the file BUNDLE: bin/ and lib/. The C and C++ runtimes are taken from the system.
# Device code is large and compresses well.
gpu_bundle() {
  from=$1 to=$2
  shift 2
  work=$(mktemp -d)
  mkdir "$work/bin" "$work/lib"
  for name in "$@"; do
    if program=$(gpu_find "$from" "$name"); then
      strip -o "$work/bin/$name" "$program"
    else
      echo "left out: $name is not in $from"
    fi
  done
  for program in "$work"/bin/*; do ldd "$program"; done | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u |
    grep -v -E '/(ld-linux|libc|libm|libdl|libpthread|librt|libresolv|libstdc\+\+|libgcc_s)[-.]' |
    while read -r library; do cp -L "$library" "$work/lib/"; done
  tar -C "$work" -cf - bin lib | xz -6 -T0 --lzma2=dict=128MiB >"$to"
  rm -rf "$work"
  echo "$to: $(($(wc -c <"$to") / 1000000)) MB"
}
