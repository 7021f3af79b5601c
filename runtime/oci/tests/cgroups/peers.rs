//! The same bundle under runc, crun and berth: every file of the cgroup holds the same.

use serde_json::{Value, json};

use crate::bundle::{Container, first_disk, ours, peer, read};
use crate::fixture::cgroup_root;

const FILES: [&str; 20] = [
    "cgroup.subtree_control",
    "cgroup.type",
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "hugetlb.2MB.max",
    "hugetlb.2MB.rsvd.max",
    "io.bfq.weight",
    "io.max",
    "io.weight",
    "memory.high",
    "memory.low",
    "memory.max",
    "memory.min",
    "memory.oom.group",
    "memory.swap.max",
    "pids.max",
];

fn resources() -> Vec<Value> {
    let (major, minor) = first_disk();
    let disk = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    vec![
        json!({}),
        json!({
            "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20},
            "cpu": {"shares": 512, "quota": 25000, "period": 50000, "burst": 1000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 77},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}],
            "unified": {"memory.high": "50331648", "memory.oom.group": "1"},
        }),
        json!({
            "memory": {"limit": 64 << 20, "swap": 64 << 20},
            "cpu": {"shares": 2, "quota": -1},
            "pids": {"limit": -1},
            "blockIO": {"throttleReadBpsDevice": disk(1 << 20), "throttleWriteIOPSDevice": disk(100)},
        }),
        json!({"memory": {"limit": 64 << 20, "swap": -1}, "cpu": {"shares": 262_144, "idle": 0}}),
        json!({"pids": {"limit": 0}}),
        json!({"cpu": {"period": 20000}, "unified": {"pids.max": "12", "cpu.weight": "33"}}),
    ]
}

/// The files' contents of one runtime's container.
fn files(runtime: std::path::PathBuf, resources: &Value, driver: Driver) -> Vec<String> {
    let path = match driver {
        Driver::Cgroupfs => None,
        Driver::Systemd => Some(format!("berth-peers.slice:test:{}", std::process::id())),
    };
    let container = Container::new("peer", "sleep 1000", |spec| {
        spec["linux"]["resources"] = resources.clone();
        if let Some(path) = &path {
            spec["linux"]["cgroupsPath"] = json!(path);
        }
    })
    .by(runtime);
    let (container, cgroup) = match driver {
        Driver::Cgroupfs => {
            let container = container.start();
            let cgroup = container.cgroup();
            (container, cgroup)
        }
        Driver::Systemd => {
            let scope = format!("berth.slice/berth-peers.slice/test-{}.scope", std::process::id());
            (container.by_systemd().start(), cgroup_root().join(scope))
        }
    };
    let contents =
        FILES.into_iter().map(|name| format!("{name}={}", read(&cgroup, name))).collect();
    container.tell(&["delete", "--force", &container.id]);
    assert!(!cgroup.exists(), "{} is left", cgroup.display());
    contents
}

#[derive(Debug, Clone, Copy)]
enum Driver {
    Cgroupfs,
    Systemd,
}

/// crun leaves reservations of huge pages without a limit, which runc and berth set along.
fn differs(variable: &str, file: &str) -> bool {
    variable == "CRUN" && file.starts_with("hugetlb.2MB.rsvd.max=")
}

fn compare(driver: Driver, variables: &[&'static str]) {
    let mut differences = Vec::new();
    for resources in resources() {
        let own = files(ours(), &resources, driver);
        for variable in variables {
            let theirs = files(peer(variable), &resources, driver);
            for (own, theirs) in own.iter().zip(theirs).filter(|(own, theirs)| *own != theirs) {
                if !differs(variable, own) {
                    differences.push(format!("{own}, {variable}: {theirs} for {resources}"));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{driver:?}\n{}", differences.join("\n"));
}

#[test]
fn files_are_those_of_runc_and_crun() {
    compare(Driver::Cgroupfs, &["RUNC", "CRUN"]);
}

#[test]
fn systemd_files_are_those_of_runc() {
    // crun has the container in a cgroup below the scope's, where most limits then are.
    compare(Driver::Systemd, &["RUNC"]);
}
