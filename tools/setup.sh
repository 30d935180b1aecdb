#!/bin/sh
# Installs the Debian packages that the build needs, if any is missing. With all there it does nothing.
#
#   tools/setup.sh [PACKAGE...]   installs what is missing, as root or through sudo
#   JEVONS_SKIP_SETUP=1           leaves the system alone (another distribution, or no rights to install)
set -eu

required="g++ cmake ninja-build make ccache pkg-config
  libabsl-dev libspdlog-dev nlohmann-json3-dev libhwy-dev libpcre2-dev libcli11-dev libedit-dev libgloo-dev
  libprotobuf-dev protobuf-compiler libgrpc++-dev protobuf-compiler-grpc libnghttp2-dev
  libgtest-dev libgmock-dev libbenchmark-dev"
# Comes along with the others where it is offered; the format check says so where it is not.
optional="clang-format-14"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
  say "$@"
  exit 1
}

[ "${JEVONS_SKIP_SETUP:-}" = 1 ] && exit 0

ID=unknown VERSION_ID='' PRETTY_NAME='this system'
[ -r /etc/os-release ] && . /etc/os-release
case "$ID-$VERSION_ID" in
  debian-12 | ubuntu-24.04) ;;
  ubuntu-2[0-3].*)
    fail "$PRETTY_NAME has gRPC 1.30 and older libraries; Jevons needs gRPC 1.51, Abseil 20220623" \
      "and Highway 1.0. Use Debian 12 or Ubuntu 24.04." ;;
  debian-11 | debian-10)
    fail "$PRETTY_NAME has GCC 10 or older; Jevons needs GCC 12. Use Debian 12 or Ubuntu 24.04." ;;
  *)
    fail "$PRETTY_NAME is not supported; Jevons is built on Debian 12 or Ubuntu 24.04. To try it with" \
      "packages that you installed yourself, set JEVONS_SKIP_SETUP=1." ;;
esac

# Prints those of the named packages that are not installed.
missing_of() {
  installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
    sed -n 's/^installed //p') || true
  for package in "$@"; do
    printf '%s\n' "$installed" | grep -qxF "$package" || printf '%s ' "$package"
  done
}

# shellcheck disable=SC2086  # a list of words
missing=$(missing_of $required "$@")
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=env
elif command -v sudo >/dev/null; then
  as_root="sudo env"
else
  fail "these packages are missing: $missing- install them as root: apt-get install $missing"
fi

apt_get() { $as_root DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 "$@" >&2; }

say "installing $missing"
apt_get update || say "apt-get update failed; trying with the package lists that are here"
for package in $(missing_of $optional); do
  if apt-cache show "$package" >/dev/null 2>&1; then
    missing="$missing$package "
  else
    say "$package is not offered here; the format check will be skipped"
  fi
done
# shellcheck disable=SC2086
apt_get install -y --no-install-recommends $missing || fail "apt-get could not install: $missing"
