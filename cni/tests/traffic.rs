//! Packets between pods, nodes and the outside, on real namespaces.

#![allow(clippy::unwrap_used)]

mod lab;

use berth_cni::{Attach, HostPort, Peer, Protocol};
use lab::*;

const DUAL: &[&str] = &["10.88.0.0/24", "fd88::/64"];

/// Whether frames on bridges pass the IP hooks as well: docker and kubeadm turn it on.
fn bridge_netfilter(node: &Node, value: u8) {
    // A module on distribution kernels; where it is not loaded, it is off.
    node.ns
        .run(&format!("[ -d /proc/sys/net/bridge ] || [ {value} = 0 ] || modprobe br_netfilter"));
    for name in ["iptables", "ip6tables"] {
        if !node.ns.succeeds("[ -d /proc/sys/net/bridge ]") {
            continue;
        }
        node.ns.run(&format!("sysctl -qw net.bridge.bridge-nf-call-{name}={value}"));
    }
}

#[tokio::test]
async fn pods_reach_each_other_and_the_node_with_their_own_address() {
    for value in [0, 1] {
        pods_reach_each_other(value).await;
    }
}

async fn pods_reach_each_other(value: u8) {
    let node = Node::new("node", DUAL);
    bridge_netfilter(&node, value);
    let network = node.open().await;
    let (a, b) = (pod(&network, "a", vec![]).await, pod(&network, "b", vec![]).await);
    assert_eq!(a.ips, [ip("10.88.0.2"), ip("fd88::2")]);
    for family in [0, 1] {
        assert_eq!(direct(&a.ns, &b.ns, b.ips[family]).unwrap(), a.ips[family]);
        assert_eq!(direct(&b.ns, &a.ns, a.ips[family]).unwrap(), b.ips[family]);
        let gateway = [ip("10.88.0.1"), ip("fd88::1")][family];
        assert_eq!(direct(&a.ns, &node.ns, gateway).unwrap(), a.ips[family]);
        assert_eq!(direct(&node.ns, &a.ns, a.ips[family]).unwrap(), gateway);
        assert_eq!(direct(&a.ns, &a.ns, a.ips[family]).unwrap(), a.ips[family]);
    }
    assert_eq!(direct(&a.ns, &a.ns, ip("127.0.0.1")).unwrap(), ip("127.0.0.1"));
    network.status().await.unwrap();
    network.teardown().await.unwrap();
}

#[tokio::test]
async fn the_outside_sees_the_nodes_address() {
    let node = Node::new("node", DUAL);
    let outside = Ns::new("outside");
    join((&node.ns, "wire", UPLINK), (&outside, "wire", BEYOND));
    let network = node.open().await;
    let a = pod(&network, "a", vec![]).await;
    assert_eq!(direct(&a.ns, &outside, ip("192.0.2.9")).unwrap(), ip("192.0.2.1"));
    assert_eq!(direct(&a.ns, &outside, ip("2001:db8::9")).unwrap(), ip("2001:db8::1"));
    assert_eq!(
        udp(&a.ns, at("192.0.2.9:53"), &outside, at("192.0.2.9:53")).unwrap(),
        ip("192.0.2.1")
    );
    // Forwarding would have the kernel ignore the uplink's router; it still listens.
    assert_eq!(node.ns.run("cat /proc/sys/net/ipv6/conf/wire/accept_ra").trim(), "2");
    // The node itself is no outside.
    assert_eq!(direct(&a.ns, &node.ns, ip("192.0.2.1")).unwrap(), a.ips[0]);
}

#[tokio::test]
async fn pods_of_two_nodes_reach_each_other_without_translation() {
    let one = Node::new("one", &["10.88.1.0/24", "fd88:1::/64"]);
    let two = Node::new("two", &["10.88.2.0/24", "fd88:2::/64"]);
    join((&one.ns, "wire", UPLINK), (&two.ns, "wire", BEYOND));
    let (first, second) = (one.open().await, two.open().await);
    let (a, b) = (pod(&first, "a", vec![]).await, pod(&second, "b", vec![]).await);
    let peers = |four: &str, six: &str, hop: [&str; 2]| {
        vec![
            Peer { pod_cidrs: vec![net(four)], via: ip(hop[0]) },
            Peer { pod_cidrs: vec![net(six)], via: ip(hop[1]) },
        ]
    };
    let to_two = peers("10.88.2.0/24", "fd88:2::/64", ["192.0.2.9", "2001:db8::9"]);
    first.set_peers(to_two.clone()).await.unwrap();
    second
        .set_peers(peers("10.88.1.0/24", "fd88:1::/64", ["192.0.2.1", "2001:db8::1"]))
        .await
        .unwrap();
    for family in [0, 1] {
        assert_eq!(direct(&a.ns, &b.ns, b.ips[family]).unwrap(), a.ips[family]);
        assert_eq!(direct(&b.ns, &a.ns, a.ips[family]).unwrap(), b.ips[family]);
    }

    // A restarted node still knows where not to translate, before it hears of its peers.
    drop(first);
    let first = one.open().await;
    assert_eq!(direct(&a.ns, &b.ns, b.ips[0]).unwrap(), a.ips[0]);

    // A peer that claims this node's range is refused by name; the others stay.
    let mut hostile = to_two;
    hostile.push(Peer { pod_cidrs: vec![net("10.88.1.0/25")], via: ip("192.0.2.9") });
    let error = first.set_peers(hostile).await.unwrap_err().to_string();
    assert!(error.contains("10.88.1.0/25") && error.contains("this node"), "{error}");
    assert_eq!(direct(&a.ns, &b.ns, b.ips[0]).unwrap(), a.ips[0]);

    // Foreign routes are not touched, ours go.
    one.ns.run("ip route add 198.51.100.0/24 via 192.0.2.9");
    first.set_peers(vec![]).await.unwrap();
    let routes = one.ns.run("ip route; ip -6 route");
    assert!(routes.contains("198.51.100.0/24") && !routes.contains("10.88.2.0/24"), "{routes}");
    assert!(!routes.contains("fd88:2::/64"), "{routes}");
}

#[tokio::test]
async fn a_host_port_leads_to_its_pod_from_everywhere() {
    for value in [0, 1] {
        a_host_port_leads_to_its_pod(value).await;
    }
}

async fn a_host_port_leads_to_its_pod(value: u8) {
    let node = Node::new("node", DUAL);
    bridge_netfilter(&node, value);
    let outside = Ns::new("outside");
    join((&node.ns, "wire", UPLINK), (&outside, "wire", BEYOND));
    let network = node.open().await;
    let ports = vec![
        host_port(8080, 80, Protocol::Tcp),
        host_port(5353, 53, Protocol::Udp),
        HostPort { host_ip: Some(ip("192.0.2.1")), ..host_port(9090, 80, Protocol::Tcp) },
    ];
    let server = pod(&network, "server", ports).await;
    let client = pod(&network, "client", vec![]).await;
    let any = [at("0.0.0.0:80"), at("[::]:80")];
    let reach =
        |from: &Ns, to: &str| tcp(from, at(to), &server.ns, any[usize::from(to.starts_with('['))]);

    assert_eq!(reach(&outside, "192.0.2.1:8080").unwrap(), ip("192.0.2.9"), "source kept");
    assert_eq!(reach(&outside, "[2001:db8::1]:8080").unwrap(), ip("2001:db8::9"));
    assert_eq!(reach(&client.ns, "192.0.2.1:8080").unwrap(), client.ips[0]);
    assert_eq!(reach(&client.ns, "[2001:db8::1]:8080").unwrap(), client.ips[1]);
    assert_eq!(reach(&server.ns, "192.0.2.1:8080").unwrap(), ip("10.88.0.1"), "to itself");
    assert_eq!(reach(&server.ns, "[2001:db8::1]:8080").unwrap(), ip("fd88::1"));
    reach(&node.ns, "192.0.2.1:8080").expect("from the node itself");
    // What `nft` prints of the rules it can load again.
    node.ns.run("nft list ruleset > /dev/null && nft list ruleset | nft -c -f -");
    node.ns.run("nft -j list ruleset > /dev/null");

    let udp_reach = |from: &Ns, to: &str| udp(from, at(to), &server.ns, at("0.0.0.0:53"));
    assert_eq!(udp_reach(&outside, "192.0.2.1:5353").unwrap(), ip("192.0.2.9"));
    assert_eq!(udp_reach(&client.ns, "192.0.2.1:5353").unwrap(), client.ips[0]);

    // A port on one address is on no other.
    reach(&outside, "192.0.2.1:9090").unwrap();
    reach(&client.ns, "10.88.0.1:9090").unwrap_err();

    // Traffic that only passes is not captured, whatever its port.
    assert_eq!(
        tcp(&client.ns, at("192.0.2.9:8080"), &outside, at("192.0.2.9:8080")).unwrap(),
        ip("192.0.2.1")
    );

    network.detach(&server.id).await.unwrap();
    reach(&outside, "192.0.2.1:8080").unwrap_err();
    let rules = node.ns.run("nft list ruleset");
    assert!(!rules.contains("8080") && !rules.contains("10.88.0.2"), "{rules}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_on_loopback_leads_to_its_pod_from_the_node_alone() {
    let node = Node::new("node", DUAL);
    let outside = Ns::new("outside");
    join((&node.ns, "wire", UPLINK), (&outside, "wire", BEYOND));
    let network = node.open().await;
    let on = |address: &str, host_port: u16| HostPort {
        host_ip: Some(ip(address)),
        ..host_port_of(host_port)
    };
    let ports = vec![on("127.0.0.1", 8080), on("::1", 8080), on("192.0.2.1", 8080)];
    let server = pod(&network, "server", ports).await;
    let client = pod(&network, "client", vec![]).await;
    let reach = |from: &Ns, to: &str| tcp(from, at(to), &server.ns, at("0.0.0.0:80"));

    for to in ["127.0.0.1:8080", "[::1]:8080"] {
        let seen = tokio::task::block_in_place(|| reach(&node.ns, to)).unwrap();
        assert_eq!(seen, ip("10.88.0.1"), "{to}");
        tokio::task::block_in_place(|| reach(&client.ns, to)).unwrap_err();
    }
    tokio::task::block_in_place(|| reach(&outside, "192.0.2.1:8080")).unwrap();
    let localnet = node.ns.run("sysctl -n net.ipv4.conf.all.route_localnet");
    assert_eq!(localnet.trim(), "0");

    // Another process has it again as soon as it opens the network; nobody gets it twice.
    drop(network);
    let network = node.open().await;
    tokio::task::block_in_place(|| reach(&node.ns, "127.0.0.1:8080")).unwrap();
    let other = Ns::new("other");
    let wish =
        Attach { id: id("other"), netns: other.path(), host_ports: vec![on("127.0.0.1", 8080)] };
    network.attach(wish).await.unwrap_err();
    network.detach(&server.id).await.unwrap();
    tokio::task::block_in_place(|| reach(&node.ns, "127.0.0.1:8080")).unwrap_err();
}

fn host_port_of(port: u16) -> HostPort {
    host_port(port, 80, Protocol::Tcp)
}

#[tokio::test]
async fn a_client_that_was_early_reaches_the_udp_host_port() {
    let node = Node::new("node", DUAL);
    let outside = Ns::new("outside");
    join((&node.ns, "wire", UPLINK), (&outside, "wire", BEYOND));
    let network = node.open().await;
    let client = outside.inside(|| std::net::UdpSocket::bind("192.0.2.9:4444").unwrap());
    client.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    let early = client.send_to(b"early", "192.0.2.1:5353").and_then(|_| client.recv(&mut [0; 8]));
    early.expect_err("nobody listens");
    let a = pod(&network, "a", vec![host_port(5353, 53, Protocol::Udp)]).await;
    let server = a.ns.inside(|| std::net::UdpSocket::bind("0.0.0.0:53").unwrap());
    server.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    client.send_to(b"again", "192.0.2.1:5353").unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(from, at("192.0.2.9:4444"));
}

#[tokio::test]
async fn a_pod_cannot_speak_for_others() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let rogue = pod(&network, "rogue", vec![]).await;
    let victim = pod(&network, "victim", vec![]).await;
    for (address, gateway) in [("10.88.0.3", "10.88.0.1"), ("fd88::3", "fd88::1")] {
        let bits = if address.contains(':') { "128 nodad" } else { "32" };
        rogue.ns.run(&format!("ip addr add {address}/{bits} dev eth0"));
        let stolen = rogue.ns.inside(|| {
            let socket = std::net::UdpSocket::bind((ip(address), 0)).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
            let server = node.ns.inside(|| std::net::UdpSocket::bind((ip(gateway), 7777))).unwrap();
            server.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
            socket.send_to(b"x", (ip(gateway), 7777)).unwrap();
            server.recv_from(&mut [0; 8]).is_ok()
        });
        assert!(!stolen, "{address} was forged");
        rogue.ns.run(&format!(
            "ip addr del {address}/{} dev eth0",
            &bits[..bits.find(' ').unwrap_or(bits.len())]
        ));
    }
    // Announcing the victim's address by ARP moves nothing.
    rogue.ns.run("ip addr add 10.88.0.3/32 dev eth0");
    rogue.ns.succeeds("timeout 2 busybox arping -U -c 2 -w 1 -I eth0 10.88.0.3");
    rogue.ns.run("ip addr del 10.88.0.3/32 dev eth0");
    direct(&node.ns, &victim.ns, victim.ips[0]).unwrap();
    // Nor does another MAC.
    rogue.ns.run("ip link set eth0 address 02:be:0a:58:00:03");
    direct(&rogue.ns, &node.ns, ip("10.88.0.1")).unwrap_err();
    direct(&node.ns, &victim.ns, victim.ips[0]).unwrap();
    rogue.ns.run("ip link set eth0 address 02:be:0a:58:00:02");
    direct(&rogue.ns, &node.ns, ip("10.88.0.1")).unwrap();
    // It is the guard that did it.
    node.ns.run("nft delete table bridge berth-cni");
    rogue.ns.run("ip addr add 10.88.0.3/32 dev eth0");
    let server = node.ns.inside(|| std::net::UdpSocket::bind("10.88.0.1:7777").unwrap());
    server.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
    rogue.ns.inside(|| {
        let socket = std::net::UdpSocket::bind("10.88.0.3:0").unwrap();
        socket.send_to(b"x", "10.88.0.1:7777").unwrap();
    });
    assert_eq!(server.recv_from(&mut [0; 8]).unwrap().1.ip(), ip("10.88.0.3"));
}

#[tokio::test]
async fn pods_cannot_pass_the_node_to_each_other() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let a = pod(&network, "a", vec![]).await;
    let b = pod(&network, "b", vec![]).await;
    // The other's MAC is no secret.
    a.ns.run("ip route add 10.88.0.3 dev eth0");
    a.ns.run("ip neigh replace 10.88.0.3 lladdr 02:be:0a:58:00:03 dev eth0");
    direct(&a.ns, &b.ns, b.ips[0]).unwrap_err();
    a.ns.run("ip route del 10.88.0.3 dev eth0");
    direct(&a.ns, &b.ns, b.ips[0]).unwrap();
}

#[tokio::test]
async fn a_pods_router_advertisement_changes_nothing() {
    let node = Node::new("node", DUAL);
    let network = node.open().await;
    let (rogue, other) =
        (pod(&network, "rogue", vec![]).await, pod(&network, "other", vec![]).await);
    // Even where somebody told them to listen.
    node.ns.run("sysctl -qw net.ipv6.conf.berth0.accept_ra=2");
    other.ns.run("sysctl -qw net.ipv6.conf.eth0.accept_ra=2");
    let default = |ns: &Ns| ns.run("ip -6 route show default proto ra");
    advertise(&rogue.ns);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!((default(&node.ns), default(&other.ns)), (String::new(), String::new()));
    node.ns.run("nft delete table ip6 berth-cni");
    advertise(&rogue.ns);
    eventually("the node believes it without the rule", || !default(&node.ns).is_empty()).await;
    assert_eq!(default(&other.ns), "", "groups are not flooded to pods");
}

/// Sends a router advertisement to all nodes from a pod's interface.
fn advertise(ns: &Ns) {
    use nix::sys::socket::*;
    use std::os::fd::AsRawFd;
    // Type 134, hop limit 64, lifetime 1800 s; the kernel fills in the checksum.
    let message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let index = ns.json("ip -j link show eth0")[0]["ifindex"].as_u64().unwrap();
    ns.inside(|| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let family = AddressFamily::Inet6;
        let socket = socket(family, SockType::Raw, flags, SockProtocol::IcmpV6).unwrap();
        setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).unwrap();
        let all = std::net::SocketAddrV6::new(
            "ff02::1".parse().unwrap(),
            0,
            0,
            index.try_into().unwrap(),
        );
        sendto(socket.as_raw_fd(), &message, &SockaddrIn6::from(all), MsgFlags::empty()).unwrap();
    });
}

#[tokio::test]
async fn an_ipv6_node_works_alone() {
    let node = Node::new("node", &["fd88::/64"]);
    let outside = Ns::new("outside");
    join((&node.ns, "wire", UPLINK), (&outside, "wire", BEYOND));
    let network = node.open().await;
    let a = pod(&network, "a", vec![host_port(8080, 80, Protocol::Tcp)]).await;
    let b = pod(&network, "b", vec![]).await;
    assert_eq!(direct(&a.ns, &b.ns, b.ips[0]).unwrap(), a.ips[0]);
    assert_eq!(direct(&a.ns, &outside, ip("2001:db8::9")).unwrap(), ip("2001:db8::1"));
    tcp(&outside, at("[2001:db8::1]:8080"), &a.ns, at("[::]:80")).unwrap();
    network.teardown().await.unwrap();
    assert_eq!(node.census(), ["wire"]);
}

#[tokio::test]
async fn a_neighbour_cannot_reach_the_nodes_loopback() {
    let node = Node::new("node", DUAL);
    let outside = Ns::new("outside");
    join((&node.ns, "wire", UPLINK), (&outside, "wire", BEYOND));
    let _network = node.open().await;
    // Even where somebody else opened the way.
    node.ns.run("sysctl -qw net.ipv4.conf.all.route_localnet=1");
    outside.run("sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.all.rp_filter=0");
    outside
        .run("ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 192.0.2.1 src 192.0.2.9");
    tcp(&outside, at("127.0.0.1:10248"), &node.ns, at("127.0.0.1:10248")).unwrap_err();
    node.ns.run("nft delete table ip berth-cni");
    tcp(&outside, at("127.0.0.1:10248"), &node.ns, at("127.0.0.1:10248"))
        .expect("without the rule it would be reached");
}
