#!/usr/bin/env bash
# Runs the demo, or end-to-end tests, in a VM: root on pure cgroup v2 with every controller.
#
#   vm.sh demo
#   vm.sh test FILTER...      on the oldest and on the newest kernel
#
# FILTER is a part of a test's name. `oldest=FILTER` and `newest=FILTER` run on that kernel alone,
# `systemd=FILTER` on the newest with systemd as PID 1; the rest has a bare PID 1. `selinux=FILTER` runs
# on the newest with SELinux where the others have AppArmor. `oci/FILTER` is one
# of berth-oci's cgroup tests, with runc and crun beside. BERTH, CENSUS and VM name the executables, by
# default those in target/release; KUBECTL a kubectl. BERTH_RACE_ROUNDS is passed on.
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
programs=(--copy "$berth:$bin/berth" --copy "$kubectl:$bin/kubectl" --copy /sbin/apparmor_parser --copy /usr/bin/secilc)
environment=(--env BERTH=$bin/berth --env KUBECTL=$bin/kubectl --env RUST_BACKTRACE=0)
environment+=(${BERTH_RACE_ROUNDS:+--env BERTH_RACE_ROUNDS=$BERTH_RACE_ROUNDS})

usage() { sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

need() { # what file
    [ -x "$2" ] || { echo "vm: no $1 at $2: run make build-tools" >&2; exit 1; }
}

demo() {
    need census "$census"
    exec "$vm" run --kernel newest "${programs[@]}" --copy "$census:$bin/census" \
        --copy "$repo/tests/demo:/root/demo" "${environment[@]}" --env CENSUS=$bin/census \
        --timeout 900 -- /root/demo/run.sh
}

# Builds tests as cargo does for the host, and prints where an executable of them is.
build() { # test executable...
    local messages name test=$1
    shift
    messages=$(cd "$repo" && cargo test --locked --workspace --test "$test" --no-run --message-format=json)
    for name in "$@"; do
        jq -r --arg name "$name" 'select(.reason == "compiler-artifact" and .executable and .target.name == $name) | .executable' <<< "$messages"
    done
}

build_tests() {
    tests=$(build e2e e2e)
    need "test executable" "$tests"
}

# berth-oci's cgroup tests with what they run, at the paths that they know it by.
build_oci_tests() {
    local runc=$repo/.cache/peers/bin/runc crun=$repo/.cache/peers/bin/crun program file
    need runc "$runc"
    need crun "$crun"
    { read -r oci_tests; read -r program; } < <(build cgroups cgroups berth-oci)
    need "test executable" "$oci_tests"
    programs+=(--copy "$program" --copy "$runc:$bin/runc" --copy "$crun:$bin/crun")
    environment+=(--env RUNC=$bin/runc --env CRUN=$bin/crun)
    while read -r file; do
        programs+=(--copy "$file")
    done < <(ldd "$runc" "$crun" | grep -o '/[^ ]*/peers/[^ :]*[.]so[^ :]*' | sort -u)
}

# Runs tests in one machine and notes how many passed and failed, and whether all is well.
run_tests() { # kernel variant filter...
    local kernel=$1 variant=$2 security=() output=$work/$1-$2 status=0 good bad word executables=() filters=()
    shift 2
    [ $# -gt 0 ] || return 0
    echo "vm: $kernel kernel, $variant: $*"
    if [ "$variant" = selinux ]; then
        security=(--append security=selinux)
    fi
    for word in "$@"; do
        case $word in
            oci/*) executables+=("$oci_tests") ;;
            *) executables+=("$tests") ;;
        esac
        filters+=("${word#oci/}")
    done
    mapfile -t executables < <(printf '%s\n' "${executables[@]}" | sort -u)
    # A machine ends with the shell that started it, however that ends.
    setpriv --pdeathsig TERM -- "$vm" test --kernel "$kernel" --variant "${variant/selinux/light}" "${security[@]}" "${programs[@]}" "${environment[@]}" \
        --env BERTH_TEST_PATIENCE=300 --timeout 1500 "${executables[@]}" -- --test-threads=1 "${filters[@]}" |
        tee "$output" || status=$?
    # A line an executable, unless the machine or one of them came to grief.
    read -r good bad < <(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' "$output" |
        awk '{ good += $1; bad += $2 } END { print good + 0, bad + 0 }')
    # A filter that names no test must not pass for a test that does.
    if [ $status = 0 ] && [ "$good" -ge $# ]; then
        word=well
    else
        word=ill
    fi
    echo "$kernel kernel, $variant: $good passed, $bad failed, $word" >> "$work/verdicts"
}

test_all() {
    local filter machine machines=0 oldest=() newest=() systemd=() selinux=()
    for filter in "$@"; do
        case $filter in
            oldest=*) oldest+=("${filter#*=}") ;;
            newest=*) newest+=("${filter#*=}") ;;
            systemd=*) systemd+=("${filter#*=}") ;;
            selinux=*) selinux+=("${filter#*=}") ;;
            *) oldest+=("$filter") newest+=("$filter") ;;
        esac
    done
    # What no filter asks for need not be built.
    [[ $(printf '%s\n' "$@" | grep -cv 'oci/') = 0 ]] || build_tests
    [[ $(printf '%s\n' "$@" | grep -c 'oci/') = 0 ]] || build_oci_tests
    work=$(mktemp -d)
    touch "$work/verdicts"
    # A machine keeps one processor busy: two go side by side, and what the second says comes afterwards.
    { run_tests newest light "${newest[@]}"; run_tests newest selinux "${selinux[@]}"; } > "$work/beside" 2>&1 &
    beside=$!
    trap 'kill $beside 2> /dev/null || true; rm -rf "$work"' EXIT
    run_tests oldest light "${oldest[@]}"
    run_tests newest systemd "${systemd[@]}"
    wait $beside || true
    cat "$work/beside"
    sed 's/^\(.*\), [a-z]*$/vm: \1/' "$work/verdicts"
    awk '{ good += $(NF - 4); bad += $(NF - 2) } END { print good + 0 " passed, " bad + 0 " failed" }' "$work/verdicts"
    # One that came to no verdict is not well either.
    for machine in "${oldest[*]}" "${newest[*]}" "${systemd[*]}" "${selinux[*]}"; do
        machines=$((machines + (${#machine} > 0)))
    done
    [ "$(grep -c ', well$' "$work/verdicts")" = "$machines" ]
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
