//! The pages, read back by a parser of the exposition format.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::interface::{
    ContainerId, ContainerUsage, CpuUsage, DeviceUsage, InterfaceUsage, IoUsage, MemoryDetails,
    MemoryUsage, OpenFiles, PodIdentity, PodUsage, Pressure, Pressures, Resources, SandboxId,
    Stall, Traffic, Usage,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::disks::{Disks, Place};
use super::host::{BlockDevice, Host};
use super::open_files::Counted;
use super::rates::NanoCores;
use super::system::{Part, System};
use super::{cadvisor, own, resource, summary};
use crate::disk::{ContainerUse, FileSystem, PodUse, Used, VolumeUse};
use crate::meters::{self, Meters};
use crate::shelf::{Holds, Shown};

/// One sample.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
    at_ms: Option<i64>,
}

/// Reads a page, and demands what the format demands: help and type before samples, each family in
/// one piece, no sample twice.
fn parse(page: &str) -> Vec<Sample> {
    let (mut samples, mut seen) = (Vec::new(), BTreeSet::new());
    let (mut current, mut families) = (String::new(), BTreeSet::new());
    let mut is_histogram = false;
    assert!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            current = rest.split(' ').next().unwrap().to_owned();
            assert!(families.insert(current.clone()), "family {current} twice");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current);
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            is_histogram = kind == "histogram";
            continue;
        }
        let sample = sample(line);
        let suffix = sample.name.strip_prefix(&current).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(["_bucket", "_sum", "_count"].contains(&suffix), is_histogram, "{line}");
        assert!(is_histogram || suffix.is_empty(), "{line}");
        assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line}");
        samples.push(sample);
    }
    samples
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        let (inside, after) = inside.split_once("} ").unwrap();
        for pair in inside.split("\",") {
            let (label, value) = pair.split_once("=\"").unwrap();
            labels.insert(label.to_owned(), value.trim_end_matches('"').to_owned());
        }
        rest = after;
    }
    let mut words = rest.split_ascii_whitespace();
    let value = words.next().unwrap().parse().unwrap();
    let at_ms = words.next().map(|at| at.parse().unwrap());
    assert_eq!(words.next(), None, "{line}");
    Sample { name: name.to_owned(), labels, value, at_ms }
}

fn used(at_ms: i64) -> Usage {
    Usage {
        at_ms,
        cpu: Some(CpuUsage { total_us: 1_500_000, ..CpuUsage::default() }),
        memory: Some(MemoryUsage {
            usage_bytes: 3000,
            working_set_bytes: 2000,
            details: Some(MemoryDetails {
                rss_bytes: 1000,
                swap_bytes: Some(1),
                ..MemoryDetails::default()
            }),
        }),
        io: None,
        processes: Some(2),
        threads: Some(4),
        pressure: Pressures {
            cpu: Some(Pressure {
                some: Stall { total_us: 2_500_000, shares: [1250, 0, 1] },
                full: Stall { total_us: 500_000, shares: [0; 3] },
            }),
            ..Pressures::default()
        },
    }
}

fn pods() -> Vec<PodUsage> {
    let traffic = |bytes| Traffic { bytes, ..Traffic::default() };
    vec![PodUsage {
        pod: PodIdentity { namespace: "ns".into(), name: "p".into(), uid: "u1".into() },
        sandbox: SandboxId::try_from("5".repeat(32)).unwrap(),
        cgroup: "/kubepods/podu1".into(),
        total: used(7000),
        limits: Default::default(),
        network: vec![InterfaceUsage {
            name: "eth0".into(),
            received: traffic(10),
            sent: traffic(20),
        }],
        containers: vec![ContainerUsage {
            id: ContainerId::try_from("c".repeat(64)).unwrap(),
            name: "main".into(),
            image: "image:1".into(),
            started_at: 5_000_000_000,
            cgroup: "/kubepods/podu1/c".into(),
            usage: used(7001),
            limits: Resources { memory_swap_bytes: Some(9), ..Resources::default() },
        }],
    }]
}

fn host() -> Host {
    Host {
        cpu_us: 2_000_000,
        working_set_bytes: 5000,
        capacity_bytes: 9000,
        cpus: 2,
        ..Host::default()
    }
}

fn file_system(id: u64) -> FileSystem {
    FileSystem {
        id,
        capacity_bytes: 1000,
        available_bytes: 600,
        used_bytes: 300,
        inodes: 10,
        inodes_free: 6,
    }
}

fn used_volume() -> VolumeUse {
    VolumeUse {
        at_ms: 6000,
        claim: Some("claim".to_owned()),
        is_ephemeral: false,
        used: Used { bytes: 40, inodes: 4 },
        file_system: file_system(9),
    }
}

/// A node whose images and layers share a second file system.
fn disks() -> Disks {
    let place = |id: u64, device: &str| {
        let number = Some((8, u32::try_from(id).unwrap()));
        Some(Place { device: device.into(), number, file_system: file_system(id) })
    };
    let scratch = VolumeUse { claim: None, is_ephemeral: true, ..used_volume() };
    let container = ContainerUse {
        at_ms: 6500,
        rootfs: Used { bytes: 7, inodes: 2 },
        logs: Used { bytes: 5, inodes: 1 },
    };
    let pod = PodUse {
        containers: [("main".to_owned(), container)].into(),
        volumes: [("data".to_owned(), used_volume()), ("scratch".to_owned(), scratch)].into(),
    };
    Disks {
        node: place(1, "/dev/a"),
        images: place(2, "/dev/b"),
        containers: place(2, "/dev/b"),
        stored: Some(Used { bytes: 33, inodes: 3 }),
        pods: [("u1".to_owned(), Arc::new(pod))].into(),
    }
}

fn open_files() -> Counted {
    let open = OpenFiles { descriptors: 7, sockets: 3, soft_limit: None };
    [(pods()[0].containers[0].id.clone(), open)].into()
}

fn find<'a>(samples: &'a [Sample], name: &str, container: Option<&str>) -> &'a Sample {
    let of =
        |s: &&Sample| s.name == name && s.labels.get("container").map(String::as_str) == container;
    samples.iter().find(of).unwrap_or_else(|| panic!("{name} is not there"))
}

#[test]
fn the_resource_page_has_what_metrics_server_reads() {
    let page = resource::render(&host(), 6999, &pods());
    let samples = parse(&page);
    let cpu = find(&samples, "container_cpu_usage_seconds_total", Some("main"));
    assert_eq!((cpu.value, cpu.at_ms), (1.5, Some(7001)));
    let expected = [("container", "main"), ("namespace", "ns"), ("pod", "p")];
    assert_eq!(cpu.labels, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    let memory = find(&samples, "container_memory_working_set_bytes", Some("main"));
    assert_eq!((memory.value, memory.at_ms), (2000.0, Some(7001)));
    let swap = ["usage", "limit"].map(|kind| format!("container_swap_{kind}_bytes"));
    assert_eq!(swap.map(|name| find(&samples, &name, Some("main")).value), [1.0, 9.0]);
    let start = find(&samples, "container_start_time_seconds", Some("main"));
    assert_eq!((start.value, start.at_ms), (5.0, None));
    let node = find(&samples, "node_cpu_usage_seconds_total", None);
    assert_eq!((node.value, node.at_ms, node.labels.len()), (2.0, Some(6999), 0));
    assert_eq!(find(&samples, "node_memory_working_set_bytes", None).value, 5000.0);
    assert_eq!(find(&samples, "pod_memory_working_set_bytes", None).at_ms, Some(7000));
    assert_eq!(find(&samples, "resource_scrape_error", None).value, 0.0);
    let mut pods = pods();
    pods[0].containers[0].usage.memory.as_mut().unwrap().details = None;
    let page = resource::render(&host(), 6999, &pods);
    assert!(!page.contains("container_swap"), "not kept, not told: {page}");
}

#[test]
fn the_cadvisor_page_has_containers_pods_and_their_network() {
    let samples =
        parse(&cadvisor::render(&host(), 6999, (&pods(), &Disks::default()), &open_files()));
    let of = |name: &str, container: &str| -> f64 {
        let named = samples.iter().filter(|s| s.name == name && s.labels["container"] == container);
        let mut named = named.filter(|s| s.labels["pod"] == "p");
        named.next().unwrap_or_else(|| panic!("{name}")).value
    };
    assert_eq!(of("container_cpu_usage_seconds_total", "main"), 1.5);
    assert_eq!(of("container_memory_working_set_bytes", ""), 2000.0);
    assert_eq!(of("container_memory_rss", "main"), 1000.0);
    assert_eq!(of("container_network_receive_bytes_total", ""), 10.0);
    assert_eq!(["processes", "threads"].map(|n| of(&format!("container_{n}"), "")), [2.0, 4.0]);
    let open = ["file_descriptors", "sockets", "ulimits_soft"];
    assert_eq!(open.map(|n| of(&format!("container_{n}"), "main")), [7.0, 3.0, -1.0]);
    let faults: Vec<&Sample> =
        samples.iter().filter(|s| s.name == "container_memory_failures_total").collect();
    assert_eq!((faults.len(), faults[0].labels["scope"].as_str()), (4, "container"));
    let container = samples.iter().find(|s| s.labels.get("container").is_some_and(|c| c == "main"));
    let labels = &container.unwrap().labels;
    assert_eq!((labels["id"].as_str(), labels["image"].as_str()), ("/kubepods/podu1/c", "image:1"));
    assert_eq!(labels["name"].len(), 64);
    assert!(!samples.iter().any(|s| s.name.contains("cfs")), "no limit, no throttling");
    assert_eq!(of("container_pressure_cpu_waiting_seconds_total", "main"), 2.5);
    assert_eq!(of("container_pressure_cpu_stalled_seconds_total", "main"), 0.5);
    assert!(!samples.iter().any(|s| s.name.contains("pressure_io")), "not kept, not told");
}

#[test]
fn the_cadvisor_page_has_block_devices() {
    let (mut host, mut pods) = (host(), pods());
    let device = |number, name: &str, counters| BlockDevice { number, name: name.into(), counters };
    host.block = vec![
        device((8, 0), "sda", [0; 11]),
        device((8, 1), "a", [1, 2, 3, 4000, 5, 6, 7, 8000, 9, 10_000, 11_000]),
    ];
    let used = DeviceUsage { number: (8, 0), read_bytes: 5, reads: 2, ..DeviceUsage::default() };
    let lost = DeviceUsage { number: (9, 9), written_bytes: 6, ..DeviceUsage::default() };
    pods[0].containers[0].usage.io = Some(IoUsage { devices: vec![used, lost] });
    let disks = disks();
    let samples = parse(&cadvisor::render(&host, 6999, (&pods, &disks), &Counted::new()));
    let of = |name: &str, container: &str, device: &str| {
        let name = format!("container_{name}");
        let mut all = samples.iter().filter(|s| {
            s.name == name && s.labels["container"] == container && s.labels["device"] == device
        });
        all.next().map(|sample| sample.value)
    };
    assert_eq!(of("fs_reads_total", "main", "/dev/sda"), Some(2.0));
    assert_eq!(of("fs_reads_bytes_total", "main", "/dev/sda"), Some(5.0));
    assert_eq!(of("fs_writes_bytes_total", "main", "9:9"), Some(6.0), "a device that is gone");
    assert_eq!(of("fs_read_seconds_total", "main", "/dev/sda"), None, "kept of no cgroup");
    assert_eq!(of("blkio_device_usage_total", "main", "/dev/sda"), Some(5.0));
    let families = [
        "reads_total",
        "reads_bytes_total",
        "read_seconds_total",
        "writes_merged_total",
        "sector_writes_total",
        "io_current",
        "io_time_seconds_total",
        "io_time_weighted_seconds_total",
    ];
    let node = families.map(|name| of(&format!("fs_{name}"), "", "/dev/a").unwrap());
    assert_eq!(node, [1.0, 1536.0, 4.0, 6.0, 7.0, 9.0, 10.0, 11.0]);
    assert_eq!(of("fs_reads_total", "", "/dev/sda"), None, "no file system of the node is there");
    let blkio = samples.iter().filter(|s| s.name == "container_blkio_device_usage_total");
    let labels = ["device", "major", "minor", "operation"];
    let blkio: Vec<_> = blkio.map(|s| labels.map(|label| s.labels[label].as_str())).collect();
    let device = |[device, major, minor]: [&'static str; 3]| {
        ["Read", "Write"].map(|operation| [device, major, minor, operation])
    };
    assert_eq!(blkio, [device(["/dev/sda", "8", "0"]), device(["9:9", "9", "9"])].concat());
}

#[test]
fn the_cadvisor_page_has_file_systems() {
    let samples = parse(&cadvisor::render(&host(), 6999, (&pods(), &disks()), &Counted::new()));
    let of = |name: &str, container: &str, device: &str| {
        let mut all = samples.iter().filter(|s| {
            s.name == name && s.labels["container"] == container && s.labels["device"] == device
        });
        all.next().map(|sample| sample.value)
    };
    assert_eq!(of("container_fs_usage_bytes", "main", "/dev/b"), Some(7.0));
    assert_eq!(of("container_fs_limit_bytes", "main", "/dev/b"), Some(1000.0));
    assert_eq!(of("container_fs_inodes_free", "", "/dev/a"), Some(6.0));
    assert_eq!(of("container_fs_inodes_total", "", "/dev/b"), Some(10.0));
    assert_eq!(of("container_fs_usage_bytes", "", "/dev/a"), Some(300.0));
    assert_eq!(of("container_fs_usage_bytes", "main", "/dev/a"), None);
}

/// What a summary is made from.
struct Scene {
    host: Host,
    disks: Disks,
    pods: Vec<PodUsage>,
    starts: BTreeMap<String, Timestamp>,
    system: System,
    rates: NanoCores,
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            host: host(),
            disks: Disks::default(),
            pods: pods(),
            starts: BTreeMap::new(),
            system: System::default(),
            rates: NanoCores::new(),
        }
    }
}

impl Scene {
    fn facts(&self) -> summary::Facts<'_> {
        let Self { host, disks, pods, starts, system, rates } = self;
        let (node, at_ms, started) = ("n1", 7000, Timestamp::from_second(3).unwrap());
        summary::Facts { node, at_ms, host, disks, pods, starts, system, started, rates }
    }
}

#[test]
fn the_summary_has_rates_once_there_are_two_looks() {
    let mut scene = Scene::default();
    let cpus = |scene: &Scene| {
        let all = summary::render(&scene.facts(), summary::Scope::CpuAndMemory);
        let pod = &all["pods"][0];
        [&all["node"], &all["node"]["systemContainers"][1], pod, &pod["containers"][0]]
            .map(|of| of["cpu"].get("usageNanoCores").cloned())
    };
    assert_eq!(cpus(&scene), [None, None, None, None]);
    let keys = ["node", "agent", "/kubepods/podu1", "/kubepods/podu1/c"];
    scene.system.agent.usage = used(7000);
    scene.rates = keys.map(str::to_owned).into_iter().zip([4, 3, 2, 1]).collect();
    assert_eq!(cpus(&scene), [4, 3, 2, 1].map(|rate| Some(json!(rate))));
}

#[test]
fn the_summary_has_the_nodes_own_parts() {
    let mut scene = Scene::default();
    let parts = |scene: &Scene| {
        let all = summary::render(&scene.facts(), summary::Scope::All);
        all["node"]["systemContainers"].as_array().unwrap().clone()
    };
    assert_eq!(parts(&scene).len(), 2, "no pod has run yet");
    scene.system.agent.usage = used(7000);
    let usage = Usage { memory: None, ..used(7000) };
    scene.system.pods = Some(Part { usage, limit_bytes: Some(5000), since_ms: Some(6000) });
    let all = parts(&scene);
    let names: Vec<_> = all.iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["kubelet", "runtime", "pods"]);
    let starts: Vec<_> = all.iter().map(|part| part["startTime"].as_str().unwrap()).collect();
    let (agent, pods) = ("1970-01-01T00:00:03Z", "1970-01-01T00:00:06Z");
    assert_eq!(starts, [agent, agent, pods]);
    assert_eq!(all[0]["memory"]["rssBytes"], 1000);
    assert_eq!(all[0]["cpu"], all[1]["cpu"]);
    let summed = &all[2]["memory"];
    assert_eq!((&summed["workingSetBytes"], &summed["usageBytes"]), (&2000.into(), &3000.into()));
    assert!(summed.get("availableBytes").is_none(), "no controller holds them: {summed}");
    scene.system.pods.as_mut().unwrap().usage = used(7000);
    assert_eq!(parts(&scene)[2]["memory"]["availableBytes"], 3000);
    scene.pods[0].containers[0].limits.memory_limit_bytes = Some(1500);
    let all = summary::render(&scene.facts(), summary::Scope::All);
    let left = |of: &Value| of["memory"].get("availableBytes").cloned();
    assert_eq!(left(&all["pods"][0]["containers"][0]), Some(0.into()), "beyond its limit");
    assert_eq!(left(&all["pods"][0]), None);
}

#[test]
fn the_default_interface_stands_for_the_nodes_network() {
    let mut scene = Scene::default();
    let interface = |name: &str, bytes| InterfaceUsage {
        name: name.to_owned(),
        received: Traffic { bytes, ..Traffic::default() },
        ..InterfaceUsage::default()
    };
    scene.host.network = vec![interface("berth0", 1), interface("ens3", 2), interface("eth0", 3)];
    let network = |scene: &Scene| {
        let all = summary::render(&scene.facts(), summary::Scope::All);
        let network = &all["node"]["network"];
        assert_eq!(network["interfaces"].as_array().unwrap().len(), scene.host.network.len());
        network.get("rxBytes").cloned()
    };
    assert_eq!(network(&scene), Some(3.into()), "no default route: upstream's name");
    scene.host.default_interface = Some("ens3".to_owned());
    assert_eq!(network(&scene), Some(2.into()));
    scene.host.network.truncate(1);
    assert_eq!(network(&scene), None);
}

#[test]
fn the_summary_has_file_systems_under_upstreams_names() {
    let scene = Scene { disks: disks(), ..Scene::default() };
    let facts = scene.facts();
    let all = summary::render(&facts, summary::Scope::All);
    let fs = |used: u64, inodes: u64, time: &str| {
        json!({"time": time, "capacityBytes": 1000, "availableBytes": 600, "usedBytes": used,
            "inodes": 10, "inodesFree": 6, "inodesUsed": inodes})
    };
    let (now, then) = ("1970-01-01T00:00:07Z", "1970-01-01T00:00:06Z");
    assert_eq!(all["node"]["fs"], fs(300, 4, now));
    assert_eq!(
        all["node"]["runtime"],
        json!({"imageFs": fs(33, 3, now), "containerFs": fs(33, 3, now)})
    );
    let pod = &all["pods"][0];
    assert_eq!(pod["containers"][0]["rootfs"], fs(7, 2, then));
    assert_eq!(pod["containers"][0]["logs"], fs(5, 1, then));
    assert_eq!(pod["ephemeral-storage"], fs(52, 7, then));
    let mut data = fs(40, 4, then);
    data["name"] = "data".into();
    data["pvcRef"] = json!({"name": "claim", "namespace": "ns"});
    assert_eq!(pod["volume"][0], data);
    assert_eq!(
        (&pod["volume"][1]["name"], pod["volume"][1].get("pvcRef")),
        (&"scratch".into(), None)
    );
    let narrow = summary::render(&facts, summary::Scope::CpuAndMemory);
    let text = narrow.to_string();
    for name in ["volume", "rootfs", "ephemeral", "imageFs"] {
        assert!(!text.contains(name), "{name}: {text}");
    }
}

#[test]
fn the_summary_has_node_pods_and_containers() {
    let scene = Scene::default();
    let facts = scene.facts();
    let all = summary::render(&facts, summary::Scope::All);
    assert_eq!(all["node"]["nodeName"], "n1");
    assert_eq!(all["node"]["cpu"]["usageCoreNanoSeconds"], 2_000_000_000_u64);
    let pod = &all["pods"][0];
    assert_eq!(pod["podRef"]["uid"], "u1");
    assert_eq!(pod["containers"][0]["memory"]["rssBytes"], 1000);
    assert_eq!(pod["containers"][0]["startTime"], "1970-01-01T00:00:05Z");
    assert_eq!(pod["network"]["rxBytes"], 10);
    let some = &pod["containers"][0]["cpu"]["psi"]["some"];
    assert_eq!((&some["total"], &some["avg10"]), (&2_500_000.into(), &12.5.into()));
    assert!(pod.get("io").is_none() && pod["memory"].get("psi").is_none(), "{pod}");
    let narrow = summary::render(&facts, summary::Scope::CpuAndMemory);
    assert!(narrow["pods"][0].get("network").is_none() && narrow["node"].get("fs").is_none());
    assert_eq!(narrow["pods"][0]["cpu"]["usageCoreNanoSeconds"], 1_500_000_000_u64);
}

#[test]
fn the_agents_own_page_names_the_node() {
    let claims = [(("ns".to_owned(), "claim".to_owned()), used_volume())].into();
    let meters = Meters::default();
    meters.count(&meters::CALLS, &["exec"]);
    meters.time(&meters::STATUS_TIME, &[], Duration::from_millis(70));
    meters.at(&meters::CLIENT_CERTIFICATE, 1000.0);
    let shown = ["Running", "Failed"].map(|phase| {
        let volumes = json!([{"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}}]);
        let pod =
            json!({"metadata": {"uid": "u1"}, "spec": {"containers": [], "volumes": volumes}});
        let status = serde_json::from_value(json!({"phase": phase})).unwrap();
        let pod = Arc::new(serde_json::from_value(pod).unwrap());
        Shown { pod, status: Arc::new(status), holds: Holds::Everything }
    });
    let (claims, meters) = (&claims, &meters);
    let facts = own::Facts { node: "n1", pods: &[], shown: &shown, claims, meters, at: 1010.0 };
    let samples = parse(&own::render(&facts, (&host(), super::host::own())));
    let of_claim = |name: &str| {
        let name = format!("kubelet_volume_stats_{name}");
        let sample = samples.iter().find(|sample| sample.name == name).unwrap();
        assert_eq!(sample.labels["namespace"], "ns");
        assert_eq!(sample.labels["persistentvolumeclaim"], "claim");
        sample.value
    };
    let names =
        ["capacity_bytes", "available_bytes", "used_bytes", "inodes", "inodes_free", "inodes_used"];
    assert_eq!(names.map(of_claim), [1000.0, 600.0, 40.0, 10.0, 6.0, 4.0]);
    let volumes = samples.iter().filter(|s| s.name == "volume_manager_total_volumes");
    let volumes = volumes.map(|s| (&*s.labels["plugin_name"], &*s.labels["state"], s.value));
    let expected = ("kubernetes.io/empty-dir", "desired_state_of_world", 2.0);
    assert_eq!(volumes.collect::<Vec<_>>(), [expected], "of what has a sandbox there is nothing");
    let calls = samples.iter().find(|s| s.name == "kubelet_runtime_operations_total").unwrap();
    assert_eq!((calls.labels["operation_type"].as_str(), calls.value), ("exec", 1.0));
    let left = "kubelet_certificate_manager_client_ttl_seconds";
    assert_eq!(find(&samples, left, None).value, -10.0);
    let within = |bound: &str| {
        let name = "kubelet_pod_status_sync_duration_seconds_bucket";
        let of_bound = |s: &&Sample| s.name == name && s.labels["le"] == bound;
        samples.iter().find(of_bound).unwrap().value
    };
    assert_eq!(["0.05", "0.1", "60", "+Inf"].map(within), [0.0, 1.0, 1.0, 1.0]);
    assert_eq!(find(&samples, "kubelet_running_pods", None).value, 0.0);
    assert!(find(&samples, "process_resident_memory_bytes", None).value > 0.0);
    let name = samples.iter().find(|s| s.name == "kubelet_node_name").unwrap();
    assert_eq!(name.labels["node"], "n1");
}
