//! Packets through the proxy's rules on a real kernel: a packet goes in, and what its receiver
//! sees is judged; never the text of a rule. Needs root.

#![allow(clippy::unwrap_used)]

mod net;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use berth_proxy::cluster::{Cluster, Update};
use berth_proxy::dataplane::{Dataplane, Report};
use berth_proxy::model::{
    Affinity, Condition, Endpoint, Facts, Place, Protocol, Service, ServiceName, ServicePort,
    Slice, SlicePort, TrafficPolicy,
};
use net::{Net, Seen, tcp, udp, udp_ask, udp_socket};

use Place::{Elsewhere, Here};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn facts() -> Facts {
    Facts {
        node_addresses: [ip("192.0.2.1"), ip("fd01::1")].into(),
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd02::/64".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd03::/112".parse().unwrap()],
        ..Facts::default()
    }
}

/// A Service with one port number for TCP and UDP.
fn service(name: &str, cluster_ips: &[&str], node_port: Option<u16>) -> Service {
    let port = |protocol: Protocol| ServicePort {
        name: format!("{protocol:?}"),
        protocol,
        port: 80,
        node_port,
    };
    Service {
        name: ServiceName { namespace: "default".into(), name: name.into() },
        cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
        external_ips: vec![],
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: Affinity::None,
    }
}

fn slice(service: &str, endpoints: &[(&str, Place)]) -> Slice {
    let port =
        |protocol: Protocol| SlicePort { name: format!("{protocol:?}"), protocol, port: 8080 };
    Slice {
        name: format!("{service}-1"),
        service: ServiceName { namespace: "default".into(), name: service.into() },
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        endpoints: endpoints
            .iter()
            .map(|(address, place)| Endpoint {
                address: ip(address),
                condition: Condition::Ready,
                place: *place,
            })
            .collect(),
    }
}

/// The proxy of one node, as its worker would drive it.
struct Proxy {
    facts: Facts,
    cluster: Cluster,
    dataplane: Dataplane,
}

impl Proxy {
    fn open(net: &Net) -> Self {
        Self::with(net, facts())
    }

    fn with(net: &Net, facts: Facts) -> Self {
        let known = facts.clone();
        let dataplane = net.node.run(move || Dataplane::open(&known).unwrap());
        Self { facts, cluster: Cluster::default(), dataplane }
    }

    fn update(&mut self, updates: impl IntoIterator<Item = Update>) -> &mut Self {
        updates.into_iter().for_each(|update| self.cluster.update(update));
        self
    }

    fn sync_full(&mut self) -> Report {
        self.cluster.changes(&self.facts);
        self.dataplane.sync_full(self.cluster.all(), &self.facts).unwrap()
    }

    fn sync(&mut self) -> Report {
        let changes = self.cluster.changes(&self.facts);
        self.dataplane.sync(changes).unwrap()
    }
}

const BOTH: [(&str, Place); 2] = [("10.244.0.2", Here), ("10.244.0.3", Here)];

/// Everything the packet table needs.
fn everything() -> Vec<Update> {
    let mut local = service("local", &["10.96.0.12"], Some(30082));
    local.external_policy = TrafficPolicy::Local;
    let mut remote = service("remote", &["10.96.0.13"], Some(30083));
    remote.external_policy = TrafficPolicy::Local;
    let mut inside = service("inside", &["10.96.0.14"], None);
    inside.internal_policy = TrafficPolicy::Local;
    let mut external = service("external", &["10.96.0.15"], None);
    external.external_ips = vec![ip("203.0.113.7")];
    let six = [("fd02::2", Here), ("fd02::3", Here)];
    let mut slices = vec![
        slice("web", &BOTH),
        slice("local", &[("10.244.0.2", Here), ("10.244.0.3", Elsewhere)]),
        slice("remote", &[("10.244.0.3", Elsewhere)]),
        slice("inside", &[("10.244.0.3", Elsewhere)]),
        slice("external", &BOTH),
    ];
    slices.push(Slice { name: "web-6".into(), ..slice("web", &six) });
    [
        service("web", &["10.96.0.10", "fd03::10"], Some(30080)),
        service("empty", &["10.96.0.11", "fd03::11"], Some(30081)),
        local,
        remote,
        inside,
        external,
    ]
    .into_iter()
    .map(Update::Service)
    .chain(slices.into_iter().map(Update::Slice))
    .collect()
}

/// What a client is expected to see.
#[derive(Clone, Copy)]
enum Expect {
    /// Exactly these endpoints answer over many tries, each seeing one source: (endpoint, source).
    Answers(&'static [(&'static str, &'static str)]),
    Refused,
    Silence,
}

use Expect::{Answers, Refused, Silence};

/// From where, to where, what happens. After kube-proxy's packet flow tables.
const FLOWS: &[(&str, &str, &str, Expect)] = &[
    // Pods to cluster IPs keep their source, unless they meet themselves.
    (
        "pod to cluster IP",
        "ep1",
        "10.96.0.10:80",
        Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.2")]),
    ),
    (
        "pod to cluster IP, IPv6",
        "ep1",
        "[fd03::10]:80",
        Answers(&[("ep1", "fd02::1"), ("ep2", "fd02::2")]),
    ),
    (
        "node to cluster IP",
        "node",
        "10.96.0.10:80",
        Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.1")]),
    ),
    (
        "outside to cluster IP is masqueraded",
        "client",
        "10.96.0.10:80",
        Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.1")]),
    ),
    // Node ports.
    (
        "outside to node port is masqueraded",
        "client",
        "192.0.2.1:30080",
        Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.1")]),
    ),
    (
        "outside to node port, IPv6",
        "client",
        "[fd01::1]:30080",
        Answers(&[("ep1", "fd02::1"), ("ep2", "fd02::1")]),
    ),
    (
        "pod to node port is masqueraded",
        "ep1",
        "192.0.2.1:30080",
        Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.1")]),
    ),
    ("node ports are not on loopback", "node", "127.0.0.1:30080", Refused),
    ("node ports are not on other addresses", "node", "10.244.0.1:30080", Refused),
    // External traffic policy Local.
    (
        "outside, local only, keeps source",
        "client",
        "192.0.2.1:30082",
        Answers(&[("ep1", "192.0.2.100")]),
    ),
    (
        "pod short-circuits a local policy",
        "ep1",
        "192.0.2.1:30082",
        Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.2")]),
    ),
    (
        "node short-circuits a local policy",
        "node",
        "192.0.2.1:30082",
        Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.1")]),
    ),
    ("outside, local policy, nothing local", "client", "192.0.2.1:30083", Silence),
    (
        "pod, local policy, nothing local",
        "ep1",
        "192.0.2.1:30083",
        Answers(&[("ep2", "10.244.0.2")]),
    ),
    (
        "cluster IP of a local policy serves all",
        "client",
        "10.96.0.12:80",
        Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.1")]),
    ),
    // Internal traffic policy Local.
    ("pod, internal policy, nothing local", "ep1", "10.96.0.14:80", Silence),
    // External addresses.
    (
        "outside to external IP",
        "client",
        "203.0.113.7:80",
        Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.1")]),
    ),
    // Nobody there.
    ("cluster IP without endpoints", "client", "10.96.0.11:80", Refused),
    ("cluster IP without endpoints, IPv6", "client", "[fd03::11]:80", Refused),
    ("cluster IP without endpoints, from a pod", "ep1", "10.96.0.11:80", Refused),
    ("cluster IP without endpoints, from the node", "node", "10.96.0.11:80", Refused),
    ("node port without endpoints", "client", "192.0.2.1:30081", Refused),
    ("undefined port of a cluster IP", "client", "10.96.0.10:81", Refused),
    ("undefined port of a cluster IP, from the node", "node", "10.96.0.10:81", Refused),
    ("unallocated address of the Service range", "client", "10.96.0.99:80", Silence),
    ("unallocated address, from a pod", "ep1", "10.96.0.99:80", Silence),
];

fn check(
    net: &Net,
    dial: fn(SocketAddr) -> Seen,
    (name, from, to, expect): (&str, &str, &str, Expect),
) {
    let to = at(to);
    let dial = move || dial(to);
    let results: BTreeSet<Seen> = match expect {
        Answers(_) => net.namespace(from).run(move || (0..40).map(|_| dial()).collect()),
        Refused | Silence => [net.namespace(from).run(dial)].into(),
    };
    let expected: BTreeSet<Seen> = match expect {
        Answers(answers) => answers
            .iter()
            .map(|(endpoint, source)| Seen::Answer {
                endpoint: (*endpoint).into(),
                source: ip(source),
            })
            .collect(),
        Refused => [Seen::Refused].into(),
        Silence => [Seen::Silence].into(),
    };
    assert_eq!(results, expected, "{name}: {from} to {to}");
}

#[test]
fn tcp_packets_go_where_the_services_say() {
    let net = Net::new();
    Proxy::open(&net).update(everything()).sync_full();
    for flow in FLOWS {
        check(&net, tcp, *flow);
    }
}

#[test]
fn udp_packets_go_where_the_services_say() {
    let net = Net::new();
    Proxy::open(&net).update(everything()).sync_full();
    for flow in FLOWS {
        check(&net, udp, *flow);
    }
}

#[test]
fn a_restart_with_unchanged_services_writes_nothing() {
    let net = Net::new();
    Proxy::open(&net).update(everything()).sync_full();
    let to = at("10.96.0.10:80");
    let (socket, before) = net.client.run(move || {
        let socket = udp_socket(to);
        let seen = udp_ask(&socket);
        (socket, seen)
    });
    let generation = net.node.run(|| berth_nft::Socket::open().unwrap().generation().unwrap());
    let mut again = Proxy::open(&net);
    assert_eq!(again.update(everything()).sync_full(), Report::default());
    let after = net.node.run(|| berth_nft::Socket::open().unwrap().generation().unwrap());
    assert_eq!(generation, after, "a transaction was sent");
    assert_eq!(udp_ask(&socket), before, "the tracked connection was lost");
    assert!(!again.dataplane.disturbed());
}

#[test]
fn nft_prints_and_reloads_the_whole_table_and_it_still_works() {
    let net = Net::new();
    let many: Vec<String> = (2..22).map(|last| format!("10.244.0.{last}")).collect();
    let many: Vec<_> = many.iter().map(|address| (address.as_str(), Elsewhere)).collect();
    let mut proxy = Proxy::open(&net);
    proxy.update(everything());
    proxy.update([
        Update::Service(service("big", &["10.96.0.20"], None)),
        Update::Slice(slice("big", &many)),
    ]);
    proxy.sync_full();
    let printed = net.node.exec("nft list ruleset", "");
    net.node.exec("nft -f -", &format!("flush ruleset\n{printed}"));
    let again = net.node.exec("nft list ruleset", "");
    assert_eq!(again.lines().count(), printed.lines().count());
    for flow in FLOWS.iter().filter(|(_, _, _, expect)| matches!(expect, Answers(_))) {
        check(&net, tcp, *flow);
    }
}

#[test]
fn a_service_with_more_endpoints_than_fixed_chains_grows_its_own() {
    let net = Net::new();
    let mut proxy = Proxy::open(&net);
    proxy.update([Update::Service(service("web", &["10.96.0.10"], None))]).sync_full();
    let many: Vec<String> = (2..40).map(|last| format!("10.244.0.{last}")).collect();
    let many: Vec<_> = many.iter().map(|address| (address.as_str(), Elsewhere)).collect();
    proxy.update([Update::Slice(slice("web", &many))]).sync();
    let mut again = Proxy::open(&net);
    let same = [
        Update::Service(service("web", &["10.96.0.10"], None)),
        Update::Slice(slice("web", &many)),
    ];
    assert_eq!(again.update(same).sync_full(), Report::default());
    again.update([Update::Slice(slice("web", &BOTH))]).sync();
    check(
        &net,
        tcp,
        (
            "shrunk",
            "client",
            "10.96.0.10:80",
            Answers(&[("ep1", "10.244.0.1"), ("ep2", "10.244.0.1")]),
        ),
    );
}

#[test]
fn nothing_leaves_for_the_service_range_until_the_first_sync() {
    let net = Net::new();
    let mut proxy = Proxy::open(&net);
    let to = at("10.96.0.10:80");
    for from in ["client", "node", "ep1"] {
        let dial = net.namespace(from).run(move || tcp(to));
        assert_eq!(dial, Seen::Silence, "from {from}");
    }
    let socket = net.client.run(move || udp_socket(to));
    assert_eq!(udp_ask(&socket), Seen::Silence);
    proxy.update(everything()).sync_full();
    assert!(matches!(udp_ask(&socket), Seen::Answer { .. }), "an untranslated entry was left");
    assert!(matches!(net.node.run(move || tcp(to)), Seen::Answer { .. }));
}

#[test]
fn udp_clients_follow_their_endpoint_when_it_changes_goes_and_comes_back() {
    let net = Net::new();
    let mut proxy = Proxy::open(&net);
    let web = service("web", &["10.96.0.10"], Some(30080));
    let endpoints = |list: &[(&str, Place)]| Update::Slice(slice("web", list));
    proxy.update([Update::Service(web), endpoints(&BOTH[..1])]).sync_full();
    let named = |seen: Seen| match seen {
        Seen::Answer { endpoint, .. } => endpoint,
        other => format!("{other:?}"),
    };
    let sockets: Vec<_> = ["10.96.0.10:80", "192.0.2.1:30080"]
        .map(|to| net.client.run(move || udp_socket(at(to))))
        .into();
    let ask = || sockets.iter().map(|socket| named(udp_ask(socket))).collect::<Vec<_>>();
    assert_eq!(ask(), ["ep1", "ep1"]);
    let report = proxy.update([endpoints(&BOTH[1..])]).sync();
    assert_eq!(report.stale_flows, 2);
    assert_eq!(ask(), ["ep2", "ep2"]);
    let report = proxy.update([endpoints(&[])]).sync();
    assert_eq!(report.stale_flows, 2);
    assert_eq!(ask(), ["Refused", "Refused"]);
    proxy.update([endpoints(&BOTH[..1])]).sync();
    assert_eq!(ask(), ["ep1", "ep1"]);
    // An endpoint more leaves the others' clients where they are.
    let report = proxy.update([endpoints(&BOTH)]).sync();
    assert_eq!(report.stale_flows, 0);
    assert_eq!(ask(), ["ep1", "ep1"]);
}

#[test]
fn no_connection_is_lost_while_endpoints_come_and_go() {
    let net = Net::new();
    // The client keeps its source: a masqueraded port at random may meet one that the endpoint
    // still has in TIME_WAIT, and wait a second, with or without changes.
    let mut facts = facts();
    facts.pod_cidrs.push("192.0.2.0/24".parse().unwrap());
    let mut proxy = Proxy::with(&net, facts);
    let mut web = service("web", &["10.96.0.10"], None);
    web.ports.retain(|port| port.protocol == Protocol::Tcp);
    proxy.update([Update::Service(web), Update::Slice(slice("web", &BOTH))]).sync_full();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let (send, result) = std::sync::mpsc::channel();
    let client = &net.client;
    let work = move || {
        let mut seen = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            seen.push(tcp(at("10.96.0.10:80")));
        }
        send.send(seen).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| client.run(work));
        let until = Instant::now() + Duration::from_millis(1500);
        let mut flips = 0;
        while Instant::now() < until {
            proxy.update([Update::Slice(slice("web", &BOTH[flips % 2..=flips % 2]))]).sync();
            proxy.update([Update::Slice(slice("web", &BOTH))]).sync();
            flips += 1;
        }
        stop.store(true, Ordering::Relaxed);
        println!("{flips} flips");
    });
    let seen = result.recv().unwrap();
    println!("{} connections", seen.len());
    let lost: Vec<_> = seen.iter().filter(|one| !matches!(one, Seen::Answer { .. })).collect();
    assert!(lost.is_empty(), "{lost:?} of {}", seen.len());
    assert!(seen.len() > 50);
}

/// A Service with client affinity, and its address on port 80.
fn sticky(last: u8) -> (Service, SocketAddr) {
    let address = format!("10.96.1.{last}");
    let mut service =
        service(&format!("sticky-{last}"), &[&address], Some(30100 + u16::from(last)));
    service.affinity = Affinity::ClientIp(Duration::from_secs(90));
    (service, at(&format!("{address}:80")))
}

fn endpoint(seen: &Seen) -> &str {
    match seen {
        Seen::Answer { endpoint, .. } => endpoint,
        other => panic!("{other:?}"),
    }
}

#[test]
fn clients_with_affinity_keep_their_endpoint_while_it_lives() {
    let net = Net::new();
    let mut proxy = Proxy::open(&net);
    let all: Vec<_> = (0..12).map(sticky).collect();
    for (service, _) in &all {
        proxy.update([
            Update::Service(service.clone()),
            Update::Slice(slice(&service.name.name, &BOTH)),
        ]);
    }
    proxy.sync_full();
    let dial = |to: SocketAddr| net.client.run(move || tcp(to));
    let mut second = Vec::new();
    for (service, to) in &all {
        let first = dial(*to);
        for _ in 0..12 {
            assert_eq!(dial(*to), first, "{}", service.name);
        }
        if endpoint(&first) == "ep2" {
            second.push((service, *to));
        }
    }
    assert!((1..12).contains(&second.len()), "one endpoint got all");
    // The first endpoint goes, so the second moves to its slot; then the first comes back.
    for (service, to) in &second {
        let name = &service.name.name;
        proxy.update([Update::Slice(slice(name, &BOTH[1..]))]).sync();
        assert_eq!(endpoint(&dial(*to)), "ep2");
        proxy.update([Update::Slice(slice(name, &BOTH))]).sync();
        for _ in 0..12 {
            assert_eq!(endpoint(&dial(*to)), "ep2", "{name}");
        }
        // When its endpoint goes, the client gets another and keeps that.
        proxy.update([Update::Slice(slice(name, &BOTH[..1]))]).sync();
        assert_eq!(endpoint(&dial(*to)), "ep1");
        proxy.update([Update::Slice(slice(name, &BOTH))]).sync();
        for _ in 0..12 {
            assert_eq!(endpoint(&dial(*to)), "ep1", "{name}");
        }
    }
    let printed = net.node.exec("nft list ruleset", "");
    net.node.exec("nft -f -", &format!("flush ruleset\n{printed}"));
    let again = Proxy::open(&net)
        .update(all.iter().flat_map(|(service, _)| {
            [Update::Service(service.clone()), Update::Slice(slice(&service.name.name, &BOTH))]
        }))
        .sync_full();
    assert_eq!(again, Report::default());
}

#[test]
fn what_somebody_else_deleted_is_repaired() {
    let net = Net::new();
    let mut proxy = Proxy::open(&net);
    proxy.update(everything()).sync_full();
    assert!(!proxy.dataplane.disturbed());
    net.node.exec("nft flush map ip berth ep0", "");
    assert!(proxy.dataplane.disturbed());
    let report = proxy.sync_full();
    assert!(report.writes > 0 && report.rebuilt == 0, "{report:?}");
    net.node.exec("nft delete table ip6 berth", "");
    net.node.exec("nft flush chain ip berth services", "");
    assert_eq!(proxy.sync_full().rebuilt, 2);
    for flow in FLOWS.iter().filter(|(_, _, _, expect)| matches!(expect, Answers(_))) {
        check(&net, tcp, *flow);
    }
    assert!(!proxy.dataplane.disturbed());
}

#[test]
fn removal_leaves_no_table_and_may_be_repeated() {
    let net = Net::new();
    Proxy::open(&net).update(everything()).sync_full();
    for _ in 0..2 {
        net.node.run(|| berth_proxy::dataplane::remove().unwrap());
        assert_eq!(net.node.exec("nft list ruleset", ""), "");
    }
}

#[test]
fn neighbours_cannot_reach_loopback_through_the_node() {
    let net = Net::new();
    let listener = net.node.run(|| {
        let scopes = ["all", "up0"].map(|scope| format!("/proc/sys/net/ipv4/conf/{scope}"));
        for scope in scopes {
            std::fs::write(format!("{scope}/route_localnet"), "1").unwrap();
        }
        let socket = UdpSocket::bind("127.0.0.1:10248").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    });
    net.client.exec("ip route del local 127.0.0.0/8 table local", "");
    net.client.exec("ip route del local 127.0.0.1 table local", "");
    net.client.exec("ip route add 127.0.0.0/8 via 192.0.2.1 src 192.0.2.100", "");
    let arrives = || {
        net.client.run(|| udp_socket(at("127.0.0.1:10248")).send(b"?").unwrap());
        listener.recv(&mut [0]).is_ok()
    };
    assert!(arrives(), "the test's neighbour cannot try");
    Proxy::open(&net);
    assert!(!arrives());
}
