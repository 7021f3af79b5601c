//! Attaching and detaching over time: repeats, restarts, failures, exhaustion, leaks, cost.

#![allow(clippy::unwrap_used)]

mod lab;

use std::time::{Duration, Instant};

use berth_cni::{Attach, Network, Protocol};
use lab::*;

const DUAL: &[&str] = &["10.88.0.0/24", "fd88::/64"];

fn request(name: &str, ns: &Ns) -> Attach {
    Attach { id: id(name), netns: ns.path(), host_ports: vec![] }
}

async fn refusal(network: &Network, request: Attach) -> String {
    let error = network.attach(request).await.expect_err("must be refused");
    let source = std::error::Error::source(&error).map(|s| format!(": {s}"));
    format!("{error}{}", source.unwrap_or_default())
}

#[tokio::test]
async fn attaching_twice_returns_the_same_and_mends_what_was_broken() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let a = pod(&network, "a", vec![]).await;
    let before = node.census();
    assert_eq!(network.attach(request("a", &a.ns)).await.unwrap(), a.ips);
    assert_eq!(node.census(), before);
    a.ns.run("ip addr flush dev eth0; ip link set eth0 down");
    assert_eq!(network.attach(request("a", &a.ns)).await.unwrap(), a.ips);
    direct(&node.ns, &a.ns, a.ips[0]).unwrap();
    direct(&node.ns, &a.ns, a.ips[1]).unwrap();
}

#[tokio::test]
async fn a_pod_has_what_the_specification_of_its_network_says() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let a = pod(&network, "a", vec![]).await;
    let links = a.ns.json("ip -j -d link show eth0");
    assert_eq!(links[0]["mtu"], 1500);
    assert_eq!(links[0]["address"], "02:be:0a:58:00:02");
    let routes = a.ns.run("ip route; ip -6 route");
    assert!(routes.contains("default via 10.88.0.1 dev eth0"), "{routes}");
    assert!(routes.contains("default via fd88::1 dev eth0"), "{routes}");
    for (setting, value) in [("accept_ra", "0"), ("accept_redirects", "0"), ("autoconf", "0")] {
        let path = format!("cat /proc/sys/net/ipv6/conf/eth0/{setting}");
        assert_eq!(a.ns.run(&path).trim(), value, "{setting}");
        let path = format!("cat /proc/sys/net/ipv6/conf/berth0/{setting}");
        assert_eq!(node.ns.run(&path).trim(), value, "{setting}");
    }
    let port = node.ns.json("ip -j -d link show type veth");
    assert_eq!(port[0]["linkinfo"]["info_slave_data"]["hairpin"], true);
    assert_eq!(port[0]["linkinfo"]["info_slave_data"]["learning"], false);
    assert_eq!(port[0]["ifalias"], "berth a 10.88.0.2 fd88::2");
    let outer = port[0]["ifname"].as_str().unwrap();
    assert_eq!(node.ns.run(&format!("ip addr show dev {outer} | grep inet || true")), "");
}

#[tokio::test]
async fn a_restart_keeps_pods_running_and_torn_leases_come_back_from_the_links() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let a = pod(&network, "a", vec![host_port(8080, 80, Protocol::Tcp)]).await;
    let b = pod(&network, "b", vec![]).await;
    drop(network);
    let leases = node.config.state_dir.join("leases");
    std::fs::write(leases.join("10.88.0.3"), "").unwrap();
    std::fs::write(leases.join("fd88::3"), "{").unwrap();

    let network = node.open().await;
    assert_eq!(node.leases(), ["10.88.0.2", "10.88.0.3", "fd88::2", "fd88::3"]);
    assert_eq!(direct(&a.ns, &b.ns, b.ips[0]).unwrap(), a.ips[0]);
    tcp(&b.ns, at("10.88.0.1:8080"), &a.ns, at("0.0.0.0:80")).unwrap();
    assert_eq!(network.attach(request("b", &b.ns)).await.unwrap(), b.ips);
    let c = pod(&network, "c", vec![]).await;
    assert_eq!(c.ips[0], ip("10.88.0.4"));
    network.detach(&b.id).await.unwrap();
    assert_eq!(node.leases().len(), 4);
}

#[tokio::test]
async fn an_exhausted_range_is_said_like_host_local_and_comes_back() {
    let node = Node::new("node", &["10.88.0.0/29"]);
    let network = node.open().await;
    let mut pods = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        pods.push(pod(&network, name, vec![]).await);
    }
    let late = Ns::new("late");
    let before = node.census();
    assert_eq!(
        refusal(&network, request("late", &late)).await,
        "no IP addresses available in range set: 10.88.0.1-10.88.0.6"
    );
    assert_eq!(node.census(), before);
    assert!(late.links().is_empty());
    network.detach(&id("c")).await.unwrap();
    // The only free address was just used: the new pod must not meet the old one's link.
    assert_eq!(network.attach(request("late", &late)).await.unwrap(), [ip("10.88.0.4")]);
    direct(&node.ns, &late, ip("10.88.0.4")).unwrap();
    direct(&pods[0].ns, &late, ip("10.88.0.4")).unwrap();
}

#[tokio::test]
async fn what_cannot_be_wired_is_refused_by_name_and_leaves_nothing() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let before = node.census();
    let pod = Ns::new("pod");
    let with_path = |path: &str| Attach { netns: path.into(), ..request("x", &pod) };

    let missing = refusal(&network, with_path("/run/no/such/namespace")).await;
    assert!(missing.starts_with("cannot enter network namespace /run/no/such"), "{missing}");
    let file = node.state.path().join("file");
    std::fs::write(&file, "").unwrap();
    let plain = refusal(&network, with_path(file.to_str().unwrap())).await;
    assert!(plain.contains("Invalid argument"), "{plain}");
    let device = refusal(&network, with_path("/dev/null")).await;
    assert!(device.contains("not a namespace file"), "{device}");
    let pipe = node.state.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let pipe = refusal(&network, with_path(pipe.to_str().unwrap())).await;
    assert!(pipe.contains("not a namespace file"), "{pipe}");
    let own = refusal(&network, request("x", &node.ns)).await;
    assert!(own.ends_with("is the node's own network namespace"), "{own}");
    pod.run("ip link add eth0 type bridge");
    let taken = refusal(&network, request("x", &pod)).await;
    assert!(taken.starts_with("eth0 already exists in /proc/"), "{taken}");
    assert_eq!(pod.links(), ["eth0"]);

    network.flush().await.unwrap();
    assert_eq!(node.census(), before);
    assert!(node.leases().is_empty());
}

#[tokio::test]
async fn a_taken_host_port_is_refused_and_free_after_detach() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let port = || vec![host_port(8080, 80, Protocol::Tcp)];
    let first = pod(&network, "first", port()).await;
    let other = Ns::new("other");
    let wish = || Attach { host_ports: port(), ..request("other", &other) };
    assert_eq!(refusal(&network, wish()).await, "host port 8080/tcp is already used by first");
    assert!(other.links().is_empty());
    network.detach(&first.id).await.unwrap();
    network.attach(wish()).await.unwrap();
    tcp(&node.ns, at("10.88.0.1:8080"), &other, at("0.0.0.0:80")).unwrap();
}

#[tokio::test]
async fn detach_and_collect_leave_nothing() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let empty = node.census();
    let kept = pod(&network, "kept", vec![]).await;
    let one = node.census();
    let gone = pod(&network, "gone", vec![host_port(80, 80, Protocol::Tcp)]).await;
    let vanished = pod(&network, "vanished", vec![]).await;
    let vanished_id = vanished.id.clone();
    drop(vanished);
    let detached = pod(&network, "detached", vec![]).await;
    network.detach(&detached.id).await.unwrap();
    network.detach(&detached.id).await.unwrap();
    eventually("the detached pod's link is gone", || detached.ns.links().is_empty()).await;

    // A link whose lease is lost, as after a crash between the two.
    let orphan = pod(&network, "orphan", vec![]).await;
    for name in node.leases().iter().filter(|n| orphan.ips.iter().any(|ip| ip.to_string() == **n)) {
        std::fs::remove_file(node.config.state_dir.join("leases").join(name)).unwrap();
    }
    drop(network);
    let network = node.open().await;
    network.collect(&[id("kept"), id("never-seen")]).await.unwrap();
    assert_eq!(node.census(), one);
    assert_eq!(node.leases(), ["10.88.0.2", "fd88::2"]);
    assert!(gone.ns.links().is_empty() && orphan.ns.links().is_empty());
    network.detach(&vanished_id).await.unwrap();
    direct(&node.ns, &kept.ns, kept.ips[0]).unwrap();

    network.collect(&[]).await.unwrap();
    assert_eq!(node.census(), empty);
    assert!(node.leases().is_empty());
    network.teardown().await.unwrap();
    assert_eq!(node.census(), Vec::<String>::new());
    assert!(!node.config.state_dir.exists());
}

#[tokio::test]
async fn connections_of_a_detached_pod_are_forgotten() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let a = pod(&network, "a", vec![host_port(5353, 53, Protocol::Udp)]).await;
    let b = pod(&network, "b", vec![]).await;
    udp(&b.ns, at("10.88.0.1:5353"), &a.ns, at("0.0.0.0:53")).unwrap();
    let tracked = || node.ns.run("conntrack -L 2>/dev/null || cat /proc/net/nf_conntrack");
    assert!(tracked().contains("10.88.0.2"));
    network.detach(&a.id).await.unwrap();
    network.flush().await.unwrap();
    assert!(!tracked().contains("10.88.0.2"), "{}", tracked());
}

#[tokio::test]
async fn reset_removes_what_another_process_left() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let a = pod(&network, "a", vec![host_port(80, 80, Protocol::Tcp)]).await;
    let busy = Network::remove_all(node.config.clone()).await.unwrap_err().to_string();
    assert!(busy.ends_with("is in use by another pod network"), "{busy}");
    drop(network);
    let mut config = node.config.clone();
    config.pod_cidrs.clear();
    Network::remove_all(config.clone()).await.unwrap();
    assert_eq!(node.census(), Vec::<String>::new());
    assert!(a.ns.links().is_empty() && !config.state_dir.exists());
    Network::remove_all(config).await.expect("nothing to remove is fine");
}

#[tokio::test]
async fn rules_flushed_by_somebody_are_noticed_and_rebuilt() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let a = pod(&network, "a", vec![host_port(8080, 80, Protocol::Tcp)]).await;
    let whole = node.census();
    let b = pod(&network, "b", vec![]).await;
    node.ns.run("nft flush ruleset");
    let unready = network.status().await.unwrap_err().to_string();
    assert_eq!(unready, "pod network is not ready: nftables table ip berth-cni is gone");
    network.detach(&b.id).await.unwrap();
    network.flush().await.unwrap();
    network.status().await.unwrap();
    assert_eq!(node.census(), whole);
    tcp(&node.ns, at("10.88.0.1:8080"), &a.ns, at("0.0.0.0:80")).unwrap();
}

#[tokio::test]
async fn a_deleted_bridge_is_noticed_and_the_next_start_puts_the_pods_back() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let (a, b) = (pod(&network, "a", vec![]).await, pod(&network, "b", vec![]).await);
    node.ns.run("ip link del berth0");
    let unready = network.status().await.unwrap_err().to_string();
    assert_eq!(unready, "pod network is not ready: bridge berth0 is gone");
    drop(network);
    let network = node.open().await;
    network.status().await.unwrap();
    for family in [0, 1] {
        eventually("the pods meet again", || direct(&a.ns, &b.ns, b.ips[family]).is_ok()).await;
    }
    network.detach(&a.id).await.unwrap();
}

#[tokio::test]
async fn ranges_and_names_that_clash_with_the_node_are_refused() {
    let node = Node::new("node", DUAL);
    node.ns.run("ip link add wire type veth peer name eriw; ip addr add 10.88.0.200/16 dev wire");
    let clash = Network::open(node.config.clone()).await.unwrap_err().to_string();
    assert_eq!(
        clash,
        "pod network configuration: pod CIDR 10.88.0.0/24 overlaps 10.88.0.200/16 of interface wire"
    );
    node.ns.run("ip link del wire; ip link add berth0 type veth peer name other");
    let name = Network::open(node.config.clone()).await.unwrap_err().to_string();
    assert_eq!(name, "link berth0 exists and is not a bridge");
    node.ns.run("ip link del berth0");
    let first = node.open().await;
    let second = Network::open(node.config.clone()).await.unwrap_err().to_string();
    assert!(second.ends_with("is in use by another pod network"), "{second}");
    first.teardown().await.unwrap();
    assert_eq!(node.census(), Vec::<String>::new());
}

#[tokio::test]
async fn a_changed_range_moves_the_bridge_and_keeps_old_leases_apart() {
    let mut node = Node::new("node", &["10.88.0.0/24"]);
    let network = node.open().await;
    let old = pod(&network, "old", vec![]).await;
    // The new range was a peer's until now.
    let peer = Ns::new("peer");
    join((&node.ns, "wire", UPLINK), (&peer, "wire", BEYOND));
    let claim = berth_cni::Peer { pod_cidrs: vec![net("10.99.0.0/24")], via: ip("192.0.2.9") };
    network.set_peers(vec![claim]).await.unwrap();
    drop(network);
    node.config.pod_cidrs = vec![net("10.99.0.0/24")];
    let network = node.open().await;
    let new = pod(&network, "new", vec![]).await;
    assert_eq!(new.ips, [ip("10.99.0.2")]);
    direct(&node.ns, &new.ns, new.ips[0]).unwrap();
    let addresses = node.ns.run("ip -o -4 addr show dev berth0");
    assert!(addresses.contains("10.99.0.1/24") && !addresses.contains("10.88"), "{addresses}");
    network.detach(&old.id).await.unwrap();
    assert_eq!(node.leases(), ["10.99.0.2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_at_once_get_different_addresses() {
    let node = Node::new("node", DUAL);
    let network = std::sync::Arc::new(node.open().await);
    let spaces: Vec<_> = (0..16).map(|_| Ns::bare("pod")).collect();
    let attach = |(n, ns): (usize, &Ns)| {
        let (network, request) = (network.clone(), request(&format!("pod-{n}"), ns));
        tokio::spawn(async move { network.attach(request).await.unwrap() })
    };
    let tasks: Vec<_> = spaces.iter().enumerate().map(attach).collect();
    let mut all = std::collections::BTreeSet::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    assert_eq!(all.len(), 32);
    // Two requests of one pod at the same time are one attachment.
    let twin = Ns::new("twin");
    let (a, b) = tokio::join!(
        network.attach(request("twin", &twin)),
        network.attach(request("twin", &twin))
    );
    assert_eq!(a.unwrap(), b.unwrap());
    network.collect(&[]).await.unwrap();
    assert!(node.leases().is_empty());
    assert_eq!(node.ns.links(), ["berth0"]);
}

/// As a crash at any moment: the runtime goes away under an attach, at 30 different times.
#[test]
fn whatever_moment_the_agent_dies_collect_leaves_nothing() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let node = Node::new("node", DUAL);
    let keeper = runtime();
    let empty = keeper.block_on(async {
        let network = node.open().await;
        let kept = pod(&network, "kept", vec![]).await;
        (node.census(), node.leases(), kept)
    });
    drop(keeper);
    for step in 0..30u64 {
        let dying = runtime();
        let network = std::sync::Arc::new(dying.block_on(node.open()));
        let spaces = [Ns::bare("pod"), Ns::bare("pod")];
        for (n, ns) in spaces.iter().enumerate() {
            let (network, name) = (network.clone(), format!("pod-{n}"));
            let ports = vec![host_port(8000 + n as u16, 80, Protocol::Tcp)];
            let wish = Attach { host_ports: ports, ..request(&name, ns) };
            dying.spawn(async move {
                if network.attach(wish).await.is_ok() {
                    let _ = network.detach(&id(&name)).await;
                }
            });
        }
        drop(network);
        std::thread::sleep(Duration::from_micros(400 * step));
        dying.shutdown_timeout(Duration::from_secs(5));
        runtime().block_on(async {
            let network = node.open().await;
            network.collect(&[id("kept")]).await.unwrap();
            direct(&node.ns, &empty.2.ns, empty.2.ips[0]).unwrap();
        });
        assert_eq!((node.census(), node.leases()), (empty.0.clone(), empty.1.clone()), "{step}");
        assert!(spaces.iter().all(|ns| ns.links().is_empty()), "{step}");
    }
}

#[tokio::test]
async fn a_network_opens_in_the_namespace_of_its_thread() {
    let mut node = Node::new("node", DUAL);
    node.config.netns = None;
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    node.ns.inside(|| {
        runtime().block_on(async {
            let network = node.open().await;
            let a = pod(&network, "a", vec![]).await;
            direct(&node.ns, &a.ns, a.ips[0]).unwrap();
            network.teardown().await.unwrap();
        });
    });
    assert_eq!(node.census(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pod_that_comes_back_at_once_is_not_reaped_with_its_past() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let mut a = pod(&network, "a", vec![]).await;
    for _ in 0..10 {
        network.detach(&a.id).await.unwrap();
        a.ips = network.attach(request("a", &a.ns)).await.unwrap();
    }
    network.flush().await.unwrap();
    direct(&node.ns, &a.ns, a.ips[0]).unwrap();
    assert_eq!(node.leases().len(), 2);
}

#[tokio::test]
async fn a_pod_is_reachable_the_moment_it_is_attached() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    for name in ["a", "b", "c", "d"] {
        let pod = pod(&network, name, vec![]).await;
        for to in &pod.ips {
            let start = Instant::now();
            direct(&node.ns, &pod.ns, *to).unwrap();
            assert!(start.elapsed() < Duration::from_millis(500), "a packet was lost to {to}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn_in_a_tight_range_never_shares_an_address_and_leaves_nothing() {
    let node = Node::new("node", &["10.88.0.0/28", "fd88::/64"]);
    let network = std::sync::Arc::new(node.open().await);
    let empty = node.census();
    let held = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    let workers: Vec<_> = (0..6)
        .map(|n| {
            let (network, held, ns) = (network.clone(), held.clone(), Ns::bare("pod"));
            tokio::spawn(async move {
                let name = format!("pod-{n}");
                let ports = vec![host_port(8000 + n, 80, Protocol::Udp)];
                for round in 0..12 {
                    let wish = Attach { host_ports: ports.clone(), ..request(&name, &ns) };
                    let ips = network.attach(wish).await.unwrap();
                    for ip in &ips {
                        assert!(held.lock().unwrap().insert(*ip), "{ip} twice");
                    }
                    let seen = ns.links();
                    assert_eq!(seen, ["eth0"], "round {round}");
                    for ip in &ips {
                        held.lock().unwrap().remove(ip);
                    }
                    network.detach(&id(&name)).await.unwrap();
                }
                ns
            })
        })
        .collect();
    let mut spaces = Vec::new();
    for worker in workers {
        spaces.push(worker.await.unwrap());
    }
    network.flush().await.unwrap();
    assert_eq!(node.census(), empty);
    assert!(node.leases().is_empty());
    assert!(spaces.iter().all(|ns| ns.links().is_empty()));
}

#[tokio::test]
async fn a_hundred_pods_come_and_go_quickly() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let pods: Vec<_> = (0..100).map(|_| Ns::bare("pod")).collect();
    let name = |n: usize| format!("pod-{n}");
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for (n, ns) in (0..).zip(&pods) {
        let ports = vec![host_port(8000 + n, 80, Protocol::Tcp)];
        let wish = Attach { host_ports: ports, ..request(&name(n.into()), ns) };
        let start = Instant::now();
        network.attach(wish).await.unwrap();
        attach.push(start.elapsed());
    }
    let all = Instant::now();
    for n in 0..pods.len() {
        let start = Instant::now();
        network.detach(&id(&name(n))).await.unwrap();
        detach.push(start.elapsed());
    }
    network.flush().await.unwrap();
    let each = all.elapsed() / 100;
    let (attach, detach) = (median(&mut attach), median(&mut detach));
    println!("attach p50 {attach:?}, detach p50 {detach:?}, with links gone {each:?} each");
    assert!(node.leases().is_empty());
    assert_eq!(node.ns.links(), ["berth0"]);
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
