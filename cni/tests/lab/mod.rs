//! Nodes, pods and outsides for tests: network namespaces held by a sleeping child each.
//!
//! Nothing is bound anywhere: when a child is killed its namespace, and every link in it, goes.
//! Needs root; without it making a namespace fails the test. Effects are read with `ip -j` and
//! `nft`, not with this crate.

#![allow(dead_code, unreachable_pub)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_cni::{Attach, AttachmentId, Config, HostPort, IpNet, Network, Protocol};
use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_millis(1500);

/// A network namespace.
pub struct Ns {
    name: &'static str,
    holder: Child,
}

impl Ns {
    pub fn new(name: &'static str) -> Self {
        let ns = Self::bare(name);
        ns.run("ip link set lo up");
        eprintln!("{name}: nsenter --net={}", ns.path().display());
        ns
    }

    /// One whose loopback is down, as a runtime hands it over.
    pub fn bare(name: &'static str) -> Self {
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net"])
            .args(["sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        holder.stdout.take().unwrap().read_exact(&mut ready).expect("root makes namespaces");
        Self { name, holder }
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// Runs a shell command inside and returns what it prints; a failure fails the test.
    pub fn run(&self, command: &str) -> String {
        let output = self.command(command);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {command}: {stderr}", self.name);
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn succeeds(&self, command: &str) -> bool {
        self.command(command).status.success()
    }

    fn command(&self, command: &str) -> std::process::Output {
        let enter = format!("--net={}", self.path().display());
        Command::new("nsenter").args([&enter, "sh", "-c", command]).output().unwrap()
    }

    pub fn json(&self, command: &str) -> serde_json::Value {
        let text = self.run(command);
        serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
    }

    /// Runs code on a thread inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Names of all links but loopback.
    pub fn links(&self) -> Vec<String> {
        let links = self.json("ip -j link");
        let name = |link: &serde_json::Value| link["ifname"].as_str().unwrap().to_owned();
        links.as_array().unwrap().iter().map(name).filter(|name| name != "lo").collect()
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A node with its uplink's other end: `192.0.2.1`/`2001:db8::1` to `192.0.2.9`/`2001:db8::9`.
pub struct Node {
    pub ns: Ns,
    pub state: TempDir,
    pub config: Config,
}

impl Node {
    pub fn new(name: &'static str, cidrs: &[&str]) -> Self {
        let ns = Ns::new(name);
        let state = TempDir::new().unwrap();
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let mut config = Config::new(cidrs, state.path().join("ipam"));
        config.netns = Some(ns.path());
        Self { ns, state, config }
    }

    pub async fn open(&self) -> Network {
        Network::open(self.config.clone()).await.unwrap_or_else(|error| panic!("{error:?}"))
    }

    pub fn leases(&self) -> Vec<String> {
        let dir = self.config.state_dir.join("leases");
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Everything that a network could have left in the kernel.
    pub fn census(&self) -> Vec<String> {
        let mut left = self.ns.links();
        left.extend(self.ns.run("nft list ruleset").lines().map(str::to_owned));
        let routes = "ip route show table all proto 190; ip -6 route show table all proto 190";
        left.extend(self.ns.run(routes).lines().map(str::to_owned));
        left.extend(self.ns.run("ip neigh show nud permanent").lines().map(str::to_owned));
        left
    }
}

/// Joins two namespaces with a link, and gives its ends addresses.
pub fn join(a: (&Ns, &str, &[&str]), b: (&Ns, &str, &[&str])) {
    let peer = b.0.holder.id();
    // An index of its own: with two ends of one number the kernel thinks of them as one device
    // and starts the queue up to a second late.
    a.0.run(&format!("ip link add {} index 900 type veth peer name {} netns {peer}", a.1, b.1));
    for (ns, link, addresses) in [a, b] {
        // Neighbour discovery waits for the link-local address, a second otherwise.
        ns.run(&format!("sysctl -qw net.ipv6.conf.{link}.accept_dad=0"));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ns.run(&format!("ip addr add {address} dev {link} {nodad}"));
        }
        ns.run(&format!("ip link set {link} up"));
    }
}

pub const UPLINK: &[&str] = &["192.0.2.1/24", "2001:db8::1/64"];
pub const BEYOND: &[&str] = &["192.0.2.9/24", "2001:db8::9/64"];

pub fn id(name: &str) -> AttachmentId {
    AttachmentId::try_from(name).unwrap()
}

/// A pod: its namespace and the addresses it got.
pub struct Pod {
    pub ns: Ns,
    pub id: AttachmentId,
    pub ips: Vec<IpAddr>,
}

pub async fn pod(network: &Network, name: &'static str, ports: Vec<HostPort>) -> Pod {
    let ns = Ns::new(name);
    let request = Attach { id: id(name), netns: ns.path(), host_ports: ports };
    let ips = network.attach(request).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    Pod { ns, id: id(name), ips }
}

pub fn host_port(host_port: u16, pod_port: u16, protocol: Protocol) -> HostPort {
    HostPort { host_ip: None, host_port, pod_port, protocol }
}

/// Connects from `client` to `to`, where a server inside `server` listens on `listen`; bytes go
/// both ways. Returns the client's address as the server saw it.
pub fn tcp(client: &Ns, to: SocketAddr, server: &Ns, listen: SocketAddr) -> io::Result<IpAddr> {
    let listener = server.inside(|| TcpListener::bind(listen)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let served = scope.spawn(move || {
            let (mut stream, peer) = listener.accept()?;
            stream.write_all(b"hello")?;
            Ok::<_, io::Error>(peer.ip())
        });
        let dialled = client.inside(|| {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut hello = [0; 5];
            stream.read_exact(&mut hello)
        });
        if dialled.is_err() {
            // Wakes the server, which would wait for ever.
            let mut wake = address;
            if wake.ip().is_unspecified() {
                wake.set_ip(if wake.is_ipv4() {
                    [127, 0, 0, 1].into()
                } else {
                    "::1".parse().unwrap()
                });
            }
            let _ = server.inside(|| TcpStream::connect(wake));
        }
        let seen = served.join().unwrap();
        dialled.and(seen)
    })
}

/// As [`tcp`], one datagram each way.
pub fn udp(client: &Ns, to: SocketAddr, server: &Ns, listen: SocketAddr) -> io::Result<IpAddr> {
    let socket = server.inside(|| UdpSocket::bind(listen)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        let served = scope.spawn(move || {
            let (_, peer) = socket.recv_from(&mut [0; 16])?;
            socket.send_to(b"hello", peer)?;
            Ok::<_, io::Error>(peer.ip())
        });
        let answered = client.inside(|| {
            let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"hi")?;
            socket.recv(&mut [0; 16])
        });
        let seen = served.join().unwrap();
        answered.and(seen)
    })
}

/// Connects to a server that listens on exactly the address that is dialled.
pub fn direct(client: &Ns, server: &Ns, ip: IpAddr) -> io::Result<IpAddr> {
    let port = SocketAddr::new(ip, 8080);
    tcp(client, port, server, port)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Waits for something that happens shortly.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
