# SPDX-License-Identifier: Apache-2.0
# Shared by the scripts in this folder: sourced with the checkout as working directory.
# shellcheck shell=sh

BUILD=${AGENTISO_BUILD:-build}
IMAGE_DIR=$BUILD/images

PACKAGES_BUILD="gcc g++ meson ninja-build pkg-config python3 libc6-dev libjansson-dev libsqlite3-dev
  libtomlplusplus-dev libpcre2-dev nettle-dev libmnl-dev libslirp-dev"
PACKAGES_RUN="qemu-system-x86 qemu-utils nftables passt ca-certificates"
PACKAGES_IMAGES="mmdebstrap e2fsprogs kmod lz4 gzip bzip2 zstd xz-utils util-linux uidmap"
PACKAGES_TEST="python3-pytest git clang libclang-rt-dev clang-format clang-tidy cppcheck shellcheck busybox-static procps
  iproute2"

say() {
  printf '\n== %s\n' "$*"
}

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null 2>&1; then
    sudo "$@"
  else
    die "this needs root to run: $*. Run it as root once, or install sudo."
  fi
}

# need_packages NAME...: installs the Debian packages that are missing, and does nothing when none is.
need_packages() {
  missing=
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  command -v apt-get >/dev/null 2>&1 || die "these Debian packages are needed and apt-get is not here:$missing"
  say "installing packages:$missing"
  as_root apt-get update -qq
  # shellcheck disable=SC2086 # a list of words
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# need_npm: Debian's npm, unless there is one from elsewhere: such a one and Debian's exclude each other.
need_npm() {
  command -v npm >/dev/null 2>&1 || need_packages nodejs npm
}

# setup_build DIR [meson option...]: configures once and builds.
setup_build() {
  dir=$1
  shift
  # Python's own packages of a version manager may shadow the system's meson and python3.
  if [ ! -f "$dir/build.ninja" ]; then
    PATH=/usr/bin:$PATH meson setup "$dir" "$@" >"$dir.setup.log" 2>&1 || {
      cat "$dir.setup.log" >&2
      die "meson setup of $dir failed; its output is above"
    }
    rm -f "$dir.setup.log"
  fi
  PATH=/usr/bin:$PATH ninja -C "$dir" --quiet
}

# ensure_images: kernel, initramfs and base image in $IMAGE_DIR; quick when they are up to date.
ensure_images() {
  mkdir -p "$IMAGE_DIR"
  images/build-boot "$IMAGE_DIR" "$BUILD/src/guest/agentiso-guest"
  images/build-image "$IMAGE_DIR" debian-dev
}
