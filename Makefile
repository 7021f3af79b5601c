# Everything here does its own set-up on a fresh Debian 12 machine, as root.

SHELL := /bin/bash
export CARGO_TERM_COLOR ?= never
# The same random cases each time, so that a gate says one thing of one tree. Another number draws others.
export PROPTEST_RNG_SEED ?= 1
BERTH := $(CURDIR)/target/release/berth
CENSUS := $(CURDIR)/target/release/census
PEERS := $(CURDIR)/.cache/peers/bin
VM_TESTS := newest=limits:: oldest=limits::a_ oldest=limits::containers_over oldest=limits::requests systemd=limits::requests newest=conformance::apparmor:: newest=nfs:: newest=clocks:: \
	oldest=services::every_replica oldest=restart::containers_outlive systemd=service:: systemd=shutdown:: systemd=slices:: \
	newest=oci/controllers:: newest=oci/peers::files newest=oci/labels:: oldest=oci/users::a_kernel systemd=oci/units:: systemd=oci/peers::systemd \
	selinux=oci/selinux:: selinux=conformance::selinux::
# Always of the whole workspace: of some packages alone cargo would build all their dependencies again, with other features.
TESTS := cargo nextest run --workspace --locked -j 1 --test '*'
BUILD_TOOLS := cargo build --release --locked --bin berth --package berth --package berth-testkit --package berth-vm --bins
AREA ?= pods

.PHONY: build setup demo demo-vm test lint deny unit e2e e2e-vm bench clean

build: ## the two executables, the small one inside the other
	@tests/setup/packages.sh build
	cargo build --release --locked --bin berth

setup:
	@tests/setup/packages.sh test
	@tests/setup/peers.sh kubectl runtimes podman criu

$(BERTH) $(CENSUS): build-tools
build-tools: setup
	$(BUILD_TOOLS)

demo: build-tools ## two replicas behind a Service, on this machine
	BERTH=$(BERTH) CENSUS=$(CENSUS) KUBECTL=$(PEERS)/kubectl tests/demo/run.sh

demo-vm: build-tools ## the same in a VM, where limits are enforced
	tests/setup/vm.sh demo

test: setup lint deny unit e2e e2e-vm ## everything
# Tests of processes mostly wait. What the next ones need is built meanwhile, out of their way; its errors are told then.
test: beside = chrt --idle 0 $(BUILD_TOOLS) -q 2> /dev/null & trap "kill $$! 2> /dev/null" EXIT;

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

deny: setup
	tests/setup/deny.sh

# What berth-oci's cgroup tests say of controllers, units and labels needs the VM as well.
unit: setup
	cargo nextest run --workspace --locked --lib --bins
	$(beside) $(TESTS) -E 'package(/^berth-(oci|runtime|cni|proxy|nft|kubelet)$$/) & not (binary(cgroups) & test(/^(controllers|units|peers|labels|selinux)::/))' && \
		BERTH_KUBECTL=$(PEERS)/kubectl $(TESTS) -E 'package(/^berth-(apiserver|testkit)$$/)' && wait

# What `limits` asserts needs cgroup controllers, `service`, `shutdown` and `slices` systemd, `nfs` a server, `clocks` a
# clock to be set, `apparmor` AppArmor, `selinux` SELinux: they run in the VM.
e2e: build-tools demo
	BERTH=$(BERTH) $(TESTS) -E 'package(=berth) & not test(/^(clocks|limits|nfs|service|shutdown|slices|conformance::(apparmor|selinux))::/)'

e2e-vm: build-tools
	@tests/setup/peers.sh runtimes
	tests/setup/vm.sh demo
	tests/setup/vm.sh test $(VM_TESTS)

bench: build-tools ## berth beside its peers: make bench AREA=pods
	@[ $(AREA) != runtime ] || tests/setup/peers.sh runtimes
	@test -e tests/bench/$(AREA).rs || { echo "no such area: $(AREA)" >&2; exit 2; }
	BERTH=$(BERTH) cargo bench --profile dev --locked --workspace --bench $(AREA)

clean:
	cargo clean
	rm -rf .cache
