#!/usr/bin/env bash
# Runs the demo, or end-to-end tests, in a VM: root on pure cgroup v2 with every controller.
#
#   vm.sh demo
#   vm.sh test FILTER...      on the oldest and on the newest kernel
#
# FILTER is a part of a test's name. `oldest=FILTER` and `newest=FILTER` run on that kernel alone,
# `systemd=FILTER` on the newest with systemd as PID 1; the rest has a bare PID 1. BERTH, CENSUS and
# VM name the executables, by default those in target/release; KUBECTL a kubectl.
#
# Where the machine has no KVM everything in the VM takes about ten times as long.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
berth=${BERTH:-$repo/target/release/berth}
census=${CENSUS:-$repo/target/release/census}
vm=${VM:-$repo/target/release/vm}
kubectl=${KUBECTL:-$repo/.cache/peers/bin/kubectl}

# Where the guest has them.
bin=/usr/local/bin
programs=(--copy "$berth:$bin/berth" --copy "$kubectl:$bin/kubectl")
environment=(--env BERTH=$bin/berth --env KUBECTL=$bin/kubectl --env RUST_BACKTRACE=0)

usage() { sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

need() { # what file
    [ -x "$2" ] || { echo "vm: no $1 at $2: run make build-tools" >&2; exit 1; }
}

demo() {
    need census "$census"
    exec "$vm" run --kernel newest "${programs[@]}" --copy "$census:$bin/census" \
        --copy "$repo/tests/demo:/root/demo" "${environment[@]}" --env CENSUS=$bin/census \
        --timeout 900 -- /root/demo/run.sh
}

# The end-to-end tests as cargo builds them for the host.
build_tests() {
    local messages
    messages=$(cd "$repo" && cargo test --locked --package berth --test e2e --no-run --message-format=json)
    tests=$(jq -r 'select(.reason == "compiler-artifact" and .target.name == "e2e" and .executable) | .executable' <<< "$messages")
    need "test executable" "$tests"
}

# Runs tests in one machine and adds its verdicts to the sums.
run_tests() { # kernel variant filter...
    local kernel=$1 variant=$2 output=$work/output status=0 counts
    shift 2
    echo "vm: $kernel kernel, $variant: $*"
    "$vm" test --kernel "$kernel" --variant "$variant" "${programs[@]}" "${environment[@]}" \
        --env BERTH_TEST_PATIENCE=300 --timeout 1500 "$tests" -- --test-threads=1 "$@" |
        tee "$output" || status=$?
    # One line, unless the machine or the test executable came to grief.
    counts=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' "$output")
    read -r good bad <<< "${counts:-0 0}"
    passed=$((passed + good)) failed=$((failed + bad))
    # A filter that names no test must not pass for a test that does.
    if [ $status != 0 ] || [ "$good" -lt $# ]; then
        verdict=1
    fi
    summary+=("vm: $kernel kernel, $variant: $good passed, $bad failed")
}

test_all() {
    local filter oldest=() newest=() systemd=()
    for filter in "$@"; do
        case $filter in
            oldest=*) oldest+=("${filter#*=}") ;;
            newest=*) newest+=("${filter#*=}") ;;
            systemd=*) systemd+=("${filter#*=}") ;;
            *) oldest+=("$filter") newest+=("$filter") ;;
        esac
    done
    build_tests
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    passed=0 failed=0 verdict=0 summary=()
    [ ${#oldest[@]} = 0 ] || run_tests oldest light "${oldest[@]}"
    [ ${#newest[@]} = 0 ] || run_tests newest light "${newest[@]}"
    [ ${#systemd[@]} = 0 ] || run_tests newest systemd "${systemd[@]}"
    printf '%s\n' "${summary[@]}" "$passed passed, $failed failed"
    exit $verdict
}

[ $# -gt 0 ] || usage
need vm "$vm"
need berth "$berth"
need kubectl "$kubectl"
case $1 in
    demo) [ $# = 1 ] || usage; demo ;;
    test) [ $# -gt 1 ] || usage; shift; test_all "$@" ;;
    *) usage ;;
esac
