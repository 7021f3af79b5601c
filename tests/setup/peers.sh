#!/usr/bin/env bash
# Puts current versions of the programs that tests talk to, or compare with, into .cache/peers.
#
#   peers.sh [--refresh] [kubectl] [runtimes] [podman] [criu]     default: kubectl runtimes
#
# They come from Debian's newest suite, with the libraries they were built against, into roots
# of their own; the host's packages stay as they are. `.cache/peers/bin/NAME` runs each of them
# (CNI plugins: `.cache/peers/cni/NAME`). A group that is there is left alone, so a second run
# needs no network; --refresh fetches it anew.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
peers=$repo/.cache/peers
suite=sid

declare -A packages=(
    [kubectl]="kubernetes-client"
    [runtimes]="crun runc containerd containernetworking-plugins nftables"
    [podman]="podman conmon"
    [criu]="criu"
)
declare -A programs=(
    [kubectl]="kubectl"
    [runtimes]="crun runc containerd containerd-shim-runc-v2 ctr nft"
    [podman]="podman conmon"
    [criu]="criu"
)

# A program that lacks nothing on this host is linked as it is. Any other gets its root's loader
# and libraries written into it: not a wrapper script, since runtimes execute themselves again
# through /proc/self/exe.
expose() { # root program-file link
    local root=$1 file=$2 link=$3 lib needs
    needs=$(ldd "$file" 2>&1) || true
    if [[ $needs == *'not found'* ]]; then
        command -v patchelf > /dev/null || { echo "peers: patchelf is missing: run tests/setup/packages.sh" >&2; exit 1; }
        lib=$(dirname "$(find "$root/usr/lib" -name libc.so.6 -print -quit)")
        patchelf --set-interpreter "$lib/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$lib" "$file"
    fi
    ln -sfn "$file" "$link"
}

provide() { # group
    local group=$1 root=$peers/$1 name file
    if [ "$refresh" = no ] && [ "$(cat "$root/.ready" 2> /dev/null)" = "$suite ${packages[$group]}" ]; then
        echo "peers: $group is there: $(cat "$root/.versions")"
        return
    fi
    # shellcheck disable=SC2086 # a list of words
    "$here/debs.sh" "$suite" "$root" ${packages[$group]}
    for name in ${programs[$group]}; do
        for file in "$root"/usr/{bin,sbin,libexec/*,lib/*}/"$name"; do
            [ -f "$file" ] && { expose "$root" "$(readlink -f "$file")" "$peers/bin/$name"; continue 2; }
        done
        echo "peers: the packages of $group hold no $name" >&2
        exit 1
    done
    if [ -d "$root/usr/lib/cni" ]; then
        for file in "$root"/usr/lib/cni/*; do
            expose "$root" "$file" "$peers/cni/$(basename "$file")"
        done
    fi
    grep -E "^(kubectl|crun|runc|containerd|containernetworking-plugins|nftables|podman|conmon|criu) " "$root/.packages" |
        paste -sd, | sed 's/,/, /g' > "$root/.versions"
    echo "$suite ${packages[$group]}" > "$root/.ready"
    echo "peers: $group unpacked: $(cat "$root/.versions")"
}

refresh=no
groups=()
for word in "$@"; do
    case $word in
        --refresh) refresh=yes ;;
        kubectl | runtimes | podman | criu) groups+=("$word") ;;
        *) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
    esac
done
[ ${#groups[@]} -gt 0 ] || groups=(kubectl runtimes)

mkdir -p "$peers"/{bin,cni}
exec 8>"$peers/.lock"
flock 8
for group in "${groups[@]}"; do
    provide "$group"
done
