//! The host's clock is set, by an hour or by years. Only a machine that is there for tests can show it:
//! this runs in the VM.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Node, condition, succeed};

const HOUR: i64 = 3600;
const YEARS: i64 = 10 * 365 * 24 * HOUR;

/// The leases of nodes end after so long.
const LEASE: Duration = Duration::from_secs(40);

/// The machine's clock, which goes back to what it was when this is dropped.
struct Clock {
    /// Seconds since 1970 at the boot.
    boot: i64,
}

impl Clock {
    fn take() -> Self {
        let line = fs::read_to_string("/proc/cmdline").unwrap();
        assert!(line.contains("vm.variant="), "this test sets the clock of the machine it runs on");
        Self { boot: now() - uptime() }
    }

    /// Sets it to the true time and these seconds.
    fn set(&self, offset: i64) {
        let seconds = self.boot + uptime() + offset;
        succeed(Command::new("date").args(["-s", &format!("@{seconds}")]));
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn uptime() -> i64 {
    let text = fs::read_to_string("/proc/uptime").unwrap();
    text.split('.').next().unwrap().parse().unwrap()
}

fn seconds(of: &[&str]) -> i64 {
    succeed(Command::new("date").args(of).arg("+%s")).trim().parse().unwrap()
}

fn now() -> i64 {
    seconds(&[])
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: asked}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sleep, '100000']
      livenessProbe: {periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 20, exec: {command: ['true']}}
---
apiVersion: v1
kind: Pod
metadata: {name: served}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: berth.local/demo:1
      readinessProbe: {periodSeconds: 1, timeoutSeconds: 20, httpGet: {path: /, port: 8080}}
";

/// What must not change: which containers run, since when, and how often they were restarted.
fn lives(node: &Node) -> Vec<Value> {
    let of = |name: &str| {
        let container = &node.wait_ready(name)["status"]["containerStatuses"][0];
        serde_json::json!([container["containerID"], container["state"], container["restartCount"]])
    };
    vec![of("asked"), of("served")]
}

/// Waits for the node's lease to be renewed by the new time.
fn lease_goes_on(node: &Node) {
    let since = Instant::now();
    node.wait_for("the lease to be renewed", || {
        let path = "jsonpath={.spec.renewTime}";
        let lease = ["-n", "kube-node-lease", "get", "lease", "node-1", "-o", path];
        let renewed = seconds(&["-d", node.kubectl(&lease).as_str()]);
        ((now() - renewed).abs() <= 15).then_some(())
    });
    assert!(since.elapsed() < LEASE, "{:?}", since.elapsed());
}

#[test]
fn a_clock_that_is_set_ends_no_pod_and_stops_no_node() {
    let clock = Clock::take();
    // Certificates are valid from when they are made: that is to be before any of the times below.
    clock.set(-2 * HOUR);
    let node = Node::start();
    node.apply(PODS);
    let before = lives(&node);
    for offset in [HOUR, -HOUR] {
        clock.set(offset);
        lease_goes_on(&node);
        let name = if offset > 0 { "later" } else { "earlier" };
        node.apply(&PODS[..PODS.find("---").unwrap()].replace("asked", name));
        node.wait_ready(name);
        node.kubectl(&["delete", "pod", name]);
        assert_eq!(lives(&node), before, "{offset}");
    }
    // No certificate is valid then, so nobody can be asked. Probes go on meanwhile.
    for offset in [YEARS, -YEARS] {
        clock.set(offset);
        std::thread::sleep(Duration::from_secs(10));
        clock.set(0);
        lease_goes_on(&node);
        assert_eq!(lives(&node), before, "{offset}");
        // Who looks after nodes has seen a lease of ten years ago, and no longer does.
        node.wait_for("the node to be Ready", || {
            (condition(&node.get("node", "node-1"), "Ready") == "True").then_some(())
        });
    }
    drop(clock);
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}
