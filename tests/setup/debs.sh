#!/usr/bin/env bash
# Fetches and unpacks packages of another Debian suite without touching the host's own apt.
#
#   debs.sh SUITE ROOT PACKAGE...          unpacks the packages and all they depend on into ROOT
#   debs.sh --only GLOB SUITE ROOT PACKAGE...   of all those, what has a name like GLOB
#   debs.sh --archive                      prints the archive's address and its keyring
#
# SUITE is a suite of the archive this machine is configured with (bookworm, trixie, sid …).
# apt gets a state directory and a sources list of its own under .cache/apt; signatures are
# checked with the Debian archive keyring. What was fetched stays there. ROOT is replaced as a
# whole, by a rename, once everything is in it, and `ROOT/.packages` lists name and version.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] || { echo "debs: $keyring is missing: install debian-archive-keyring" >&2; exit 1; }

# The archive this machine uses: that of its own release, asked from apt, whichever format its
# sources have. Works before any `apt-get update`.
own_release=$(. /etc/os-release && echo "${VERSION_CODENAME:?}")
archive=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
    awk -v r="$own_release" '$2 == r && !seen++ { print $1 }')
[ -n "$archive" ] || { echo "debs: apt has no source for $own_release, so no archive to ask" >&2; exit 1; }
if [ "${1:-}" = --archive ]; then
    echo "$archive $keyring"
    exit
fi

only='*'
if [ "${1:-}" = --only ]; then
    only=$2
    shift 2
fi
if [ $# -lt 3 ]; then
    sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
suite=$1 root=$2
shift 2

state=$repo/.cache/apt/$suite
mkdir -p "$state"/{lists/partial,archives/partial,etc/none/partial}
exec 9>"$state/lock"
flock 9

cat > "$state/etc/sources.list" <<SOURCES
deb [signed-by=$keyring] $archive $suite main
SOURCES
# An empty status file: apt believes nothing is installed, so the whole closure is fetched.
: > "$state/status"
cat > "$state/etc/apt.conf" <<CONF
Dir::State "$state";
Dir::State::lists "$state/lists";
Dir::State::status "$state/status";
Dir::Cache "$state";
Dir::Cache::archives "$state/archives";
Dir::Etc::sourcelist "$state/etc/sources.list";
Dir::Etc::sourceparts "$state/etc/none";
Dir::Etc::preferencesparts "$state/etc/none";
APT::Architecture "$(dpkg --print-architecture)";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Debug::NoLocking "true";
CONF
# Hooks that the host put into its configuration are about the host: cleared.
cat >> "$state/etc/apt.conf" <<'CONF'
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;
CONF
private_apt() { APT_CONFIG="$state/etc/apt.conf" apt-get "$@"; }

# The index is an hour's worth: several roots are made in one set-up.
if [ -z "$(find "$state/lists" -maxdepth 1 -name '*Packages*' -mmin -60 -print -quit)" ]; then
    echo "debs: reading the package index of $suite"
    private_apt -qq -o Acquire::Retries=3 update
    find "$state/lists" -maxdepth 1 -name '*Packages*' -exec touch {} +
fi

# apt names only what it has not got yet: asked with an empty archive directory, it names all.
files=() names=()
while read -r _ file _; do # 'uri' file size hash; file is name_version_arch.deb, escaped
    name=${file%%_*}
    # shellcheck disable=SC2053 # a glob on purpose
    [[ $name == $only ]] || continue
    version=${file#*_}
    files+=("$file")
    names+=("$name=$(printf '%b' "$(sed 's/_[^_]*$//; s/%/\\x/g' <<< "$version")")")
done < <(private_apt -qq -y -o Dir::Cache::archives="$state/etc/none" --print-uris install "$@")
[ ${#files[@]} -gt 0 ] || { echo "debs: $suite has none of: $*" >&2; exit 1; }

echo "debs: $suite: ${#files[@]} packages for $*"
(cd "$state/archives" && private_apt -qq -o Acquire::Retries=3 download "${names[@]}" > /dev/null)

fresh=$root.new.$$
trap 'rm -rf "$fresh"' EXIT
mkdir -p "$fresh"
for file in "${files[@]}"; do
    deb=$state/archives/$file
    [ -f "$deb" ] || { echo "debs: $file was not fetched" >&2; exit 1; }
    dpkg-deb -x "$deb" "$fresh"
    dpkg-deb -W --showformat '${Package} ${Version}\n' "$deb" >> "$fresh/.packages"
done
sort -o "$fresh/.packages" "$fresh/.packages"
rm -rf "$root"
mkdir -p "$(dirname "$root")"
mv "$fresh" "$root"
