#!/usr/bin/env bash
# The main job from end to end: two replicas behind a Service, a pod deleted, the agent killed.
#
#   run.sh        BERTH, KUBECTL and CENSUS name the executables
#
# It runs in a network namespace of its own, so that it touches nothing of the host's network, and
# keeps its files in a temporary directory. It ends with `berth reset` and the leak census.
set -euo pipefail

berth=${BERTH:?the berth executable}
kubectl=${KUBECTL:?a kubectl}
census=${CENSUS:?the census executable}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "${1:-}" != inside ]; then
    exec unshare --net -- "$0" inside
fi

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

work=$(mktemp -d /tmp/berth-demo.XXXXXX)
dirs=(--state-dir "$work/state" --run-dir "$work/run" --log-dir "$work/log/pods")
scope=(--root "$work/state" --root "$work/run" --root "$work/log/pods" --root "$work/log/containers")
agent=
deleting=
finish() {
    local status=$?
    trap - EXIT
    # Without an API server it would wait for ever, and whoever reads what it may still say with it.
    if [ -n "$deleting" ]; then
        kill "$deleting" 2> /dev/null || true
        wait "$deleting" 2> /dev/null || true
    fi
    if [ -n "$agent" ]; then
        kill "$agent" 2> /dev/null || true
        wait "$agent" 2> /dev/null || true
    fi
    "$berth" reset "${dirs[@]}" > "$work/reset.log" 2>&1 || { cat "$work/reset.log"; status=1; }
    if [ $status != 0 ]; then
        echo "demo: failed; the agent said:"
        tail -n 40 "$work/agent.log" 2> /dev/null || true
    fi
    umount "$work/run" 2> /dev/null || true
    local before=$work.census
    if [ -e "$work/before.json" ]; then mv "$work/before.json" "$before"; fi
    rm -rf "$work"
    if [ -e "$before" ]; then
        # What ended a moment ago may wait for the host's init to reap it.
        local tries=50
        until "$census" diff "$before" "${scope[@]}" > "$before.diff"; do
            [ $((tries -= 1)) -gt 0 ] || { cat "$before.diff"; status=1; break; }
            sleep 0.2
        done
        rm -f "$before.diff"
        rm -f "$before"
    fi
    [ $status != 0 ] || say "nothing is left behind"
    exit $status
}
trap finish EXIT

# A network of one machine: an address and a default route, as any host has.
ip link set lo up
ip link add uplink type veth peer name outside
for end in uplink outside; do
    # Link-local addresses would come late, into the middle of the census.
    ip link set $end addrgenmode none
    ip link set $end up
done
ip address add 192.0.2.10/24 dev uplink
ip route add default via 192.0.2.1
# What an earlier node left of an empty `kubepods` goes with the first that ends: it would be told as gone.
for left in /sys/fs/cgroup/kubepods /sys/fs/cgroup/unified/kubepods; do
    if grep -qsx 'populated 0' "$left/cgroup.events"; then find "$left" -depth -type d -exec rmdir {} \;; fi
done
"$census" take "${scope[@]}" > "$work/before.json"
mkdir "$work/run"
mount -t tmpfs -o mode=0700 berth-demo "$work/run"

start() {
    "$berth" up "${dirs[@]}" --node-name demo --node-ip 192.0.2.10 "$@" >> "$work/agent.log" 2>&1 &
    agent=$!
}
export KUBECONFIG=$work/state/standalone/admin.kubeconfig

wait_for() { # seconds command...
    local deadline=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || { echo "demo: gave up waiting for: $*" >&2; return 1; }
        kill -0 "$agent" 2> /dev/null || { echo "demo: the agent ended" >&2; return 1; }
        sleep 0.05
    done
}

say "what this host cannot enforce"
run "$berth" check "${dirs[@]}"

say "start a node with an embedded API server, with an image made from its own executable"
"$berth" demo-image "$work/demo.tar"
start --import "$work/demo.tar"
wait_for 60 "$kubectl" get --raw /readyz
wait_for 60 "$kubectl" wait --for=condition=Ready node/demo --timeout=1s
run "$kubectl" get nodes -o wide

say "two replicas and a Service"
began=$(date +%s%N)
run "$kubectl" apply -f "$here/demo.yaml"
run "$kubectl" wait --for=condition=Ready pod/demo-1 pod/demo-2 --timeout=60s
echo "applied and ready in $((($(date +%s%N) - began) / 1000000)) ms"

address=$("$kubectl" get service demo -o 'jsonpath={.spec.clusterIP}')
both() { # url: until both replicas have answered
    local seen= deadline=$((SECONDS + 20)) answer
    until [[ $seen == *demo-1* && $seen == *demo-2* ]]; do
        [ $SECONDS -lt $deadline ] || { echo "demo: only $seen answered on $1" >&2; return 1; }
        answer=$(curl -sS --max-time 2 "$1") && seen+=" ${answer%% *}"
    done
    echo "$1 answered: $(tr ' ' '\n' <<< "$seen" | sed '/^$/d' | sort | uniq -c | tr '\n' ' ')"
}
say "the ClusterIP and the NodePort reach both"
wait_for 20 curl -sS --max-time 2 "http://$address/"
both "http://$address/"
both "http://192.0.2.10:30080/"

say "a pod is deleted, and traffic goes on"
"$kubectl" delete pod demo-2 --wait=true > "$work/delete.log" &
deleting=$!
answered=0
while kill -0 "$deleting" 2> /dev/null; do
    curl -sS --max-time 2 -o /dev/null "http://$address/"
    answered=$((answered + 1))
done
wait "$deleting"
deleting=
cat "$work/delete.log"
for _ in 1 2 3 4 5; do curl -sS --max-time 2 "http://$address/"; done
echo "$answered requests were answered while it went, and 5 since"

say "the agent is killed with SIGKILL: the pods still answer"
kill -9 "$agent"
wait "$agent" 2> /dev/null || true
curl -sS --max-time 2 "http://$address/"
curl -sS --max-time 2 "http://192.0.2.10:30080/"

say "it comes back, and nothing was restarted"
start
wait_for 60 "$kubectl" get --raw /readyz
run "$kubectl" wait --for=condition=Ready pod/demo-1 --timeout=30s
run "$kubectl" apply -f "$here/demo.yaml"
run "$kubectl" wait --for=condition=Ready pod/demo-2 --timeout=60s
run "$kubectl" get pods,svc -o wide
run "$kubectl" logs demo-1
restarts=$("$kubectl" get pod demo-1 -o 'jsonpath={.status.containerStatuses[0].restartCount}')
[ "$restarts" = 0 ] || { echo "demo: demo-1 was restarted $restarts times" >&2; exit 1; }
if [ -e /sys/fs/cgroup/cgroup.controllers ] && grep -qw memory /sys/fs/cgroup/cgroup.controllers; then
    say "the limits are in force"
    group=$(find /sys/fs/cgroup/kubepods -name memory.max -path '*/pod*/*/*' -print -quit)
    printf '%s %s\n' "$group" "$(cat "$group")"
    [ "$(cat "$group")" = $((64 << 20)) ]
fi
run "$berth" pods "${dirs[@]}"
