#!/usr/bin/env bash
# Holds the dependencies to deny.toml: bans, duplicates, licences and sources always; advisories
# where their database can be had.
#
#   deny.sh      BERTH_ADVISORY_DB: a local clone of the RustSec advisory database, instead of
#                fetching it; with it, or where it is fetched, an advisory fails the check
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$repo"

deny=$repo/.cache/tools/bin/cargo-deny
[ -x "$deny" ] || deny=$(command -v cargo-deny) || { echo "deny: cargo-deny is missing: run tests/setup/packages.sh" >&2; exit 1; }

"$deny" --locked --log-level error check --hide-inclusion-graph bans licenses sources

# The same rules, and where the database comes from and is kept.
config=$(mktemp --suffix .toml)
trap 'rm -f "$config"' EXIT
database=$repo/.cache/advisory-db
# cargo-deny takes no path for an address, so git is told to read this one from the clone.
stand_in=https://local.invalid/advisory-db
if [ -n "${BERTH_ADVISORY_DB:-}" ]; then
    export GIT_CONFIG_COUNT=1 GIT_CONFIG_VALUE_0=$stand_in
    GIT_CONFIG_KEY_0=url.$(realpath "$BERTH_ADVISORY_DB").insteadOf
    export GIT_CONFIG_KEY_0
fi
export GIT_TERMINAL_PROMPT=0
{
    printf 'db-path = "%s"\n' "$database"
    printf 'git-fetch-with-cli = true\n'
    [ -z "${BERTH_ADVISORY_DB:-}" ] || printf 'db-urls = ["%s"]\n' "$stand_in"
} > "$config.section"
sed "/^\[advisories\]/r $config.section" deny.toml > "$config"
rm -f "$config.section"

if ! said=$(timeout 300 "$deny" --locked --log-level error --config "$config" fetch db 2>&1); then
    if [ -n "${BERTH_ADVISORY_DB:-}" ]; then
        echo "deny: the advisory database in $BERTH_ADVISORY_DB cannot be read: $said" >&2
        exit 1
    fi
    echo "deny: advisories NOT CHECKED: their database cannot be reached from this machine"
    exit 0
fi
"$deny" --locked --offline --log-level error --config "$config" check --hide-inclusion-graph advisories
