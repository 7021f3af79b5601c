//! The pages, read back by a parser of the exposition format.

use std::collections::{BTreeMap, BTreeSet};

use berth_runtime::interface::{
    ContainerId, ContainerUsage, CpuUsage, InterfaceUsage, MemoryDetails, MemoryUsage, PodIdentity,
    PodUsage, Pressure, Pressures, SandboxId, Stall, Traffic, Usage,
};

use super::host::Host;
use super::{cadvisor, own, resource, summary};

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
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            continue;
        }
        let sample = sample(line);
        assert_eq!(sample.name, current, "{line}");
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
            details: Some(MemoryDetails { rss_bytes: 1000, ..MemoryDetails::default() }),
        }),
        io: None,
        processes: Some(2),
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
    let start = find(&samples, "container_start_time_seconds", Some("main"));
    assert_eq!((start.value, start.at_ms), (5.0, None));
    let node = find(&samples, "node_cpu_usage_seconds_total", None);
    assert_eq!((node.value, node.at_ms, node.labels.len()), (2.0, Some(6999), 0));
    assert_eq!(find(&samples, "node_memory_working_set_bytes", None).value, 5000.0);
    assert_eq!(find(&samples, "pod_memory_working_set_bytes", None).at_ms, Some(7000));
    assert_eq!(find(&samples, "resource_scrape_error", None).value, 0.0);
    assert!(!page.contains("swap_limit") && !page.contains("container_swap"), "not kept, not told");
}

#[test]
fn the_cadvisor_page_has_containers_pods_and_their_network() {
    let samples = parse(&cadvisor::render(&host(), 6999, &pods()));
    let of = |name: &str, container: &str| -> f64 {
        let named = samples.iter().filter(|s| s.name == name && s.labels["container"] == container);
        let mut named = named.filter(|s| s.labels["pod"] == "p");
        named.next().unwrap_or_else(|| panic!("{name}")).value
    };
    assert_eq!(of("container_cpu_usage_seconds_total", "main"), 1.5);
    assert_eq!(of("container_memory_working_set_bytes", ""), 2000.0);
    assert_eq!(of("container_memory_rss", "main"), 1000.0);
    assert_eq!(of("container_network_receive_bytes_total", ""), 10.0);
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
fn the_summary_has_node_pods_and_containers() {
    let starts = BTreeMap::new();
    let (host, pods) = (host(), pods());
    let facts = summary::Facts {
        node: "n1",
        at_ms: 7000,
        host: &host,
        storage: None,
        pods: &pods,
        starts: &starts,
    };
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
    let samples = parse(&own::render("n1", (&host(), super::host::own()), &[]));
    assert_eq!(find(&samples, "kubelet_running_pods", None).value, 0.0);
    assert!(find(&samples, "process_resident_memory_bytes", None).value > 0.0);
    let name = samples.iter().find(|s| s.name == "kubelet_node_name").unwrap();
    assert_eq!(name.labels["node"], "n1");
}
