//! A small network of namespaces: a node, two endpoints behind it, and a client outside.
//!
//! ```text
//! client 192.0.2.100 ── 192.0.2.1 node 10.244.0.1 ─┬─ ep1 10.244.0.2
//!        fd01::100        fd01::1      fd02::1     └─ ep2 10.244.0.3
//! ```
//! Each namespace is a thread's own and goes with it, so nothing is left behind whatever a test
//! does. Links are routed, not bridged: every packet between endpoints passes the node's rules.
//! To look inside while a test hangs: `nsenter -t <tid> -n`, with the tids it prints.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and the thread that lives in it.
pub(crate) struct Namespace {
    pub(crate) name: &'static str,
    pub(crate) tid: i32,
    jobs: Sender<Job>,
}

impl Namespace {
    pub(crate) fn new(name: &'static str) -> Self {
        let (jobs, receive) = channel::<Job>();
        let (ready, tid) = channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests need root");
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            receive.into_iter().for_each(|job| job());
        });
        let tid = tid.recv().expect("the namespace's thread started");
        println!("{name}: nsenter -t {tid} -n");
        Self { name, tid, jobs }
    }

    /// Runs something inside and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        self.jobs.send(Box::new(move || drop(done.send(work())))).unwrap();
        result.recv().expect("the job did not panic")
    }

    /// Runs a line of words as a command inside, with input; expects success.
    pub(crate) fn exec(&self, line: &str, input: &str) -> String {
        let (line, input) = (line.to_owned(), input.to_owned());
        self.run(move || {
            let words: Vec<_> = line.split_whitespace().collect();
            let mut child = Command::new(words[0])
                .args(&words[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {stderr}");
            String::from_utf8(output.stdout).unwrap()
        })
    }

    fn ip(&self, line: &str) {
        self.exec(&format!("ip {line}"), "");
    }

    /// Answers each TCP connection and UDP packet on a port with our name and the client's
    /// address as seen here.
    fn serve(&self, port: u16) {
        let name = self.name;
        for any in ["0.0.0.0", "::"] {
            let at = SocketAddr::new(any.parse().unwrap(), port);
            let (tcp, udp) = self.run(move || (bind_tcp(at), bind_udp(at)));
            std::thread::spawn(move || {
                for stream in tcp.incoming() {
                    let Ok(mut stream) = stream else { return };
                    let Ok(peer) = stream.peer_addr() else { continue };
                    let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
                }
            });
        }
    }
}

/// IPv6 sockets must not take IPv4's port.
fn bind_tcp(at: SocketAddr) -> TcpListener {
    only_v6(at);
    TcpListener::bind(at).unwrap()
}

fn bind_udp(at: SocketAddr) -> UdpSocket {
    UdpSocket::bind(at).unwrap()
}

fn only_v6(at: SocketAddr) {
    if at.is_ipv6() {
        std::fs::write("/proc/sys/net/ipv6/bindv6only", "1").unwrap();
    }
}

/// What a client saw.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    /// An endpoint answered, and saw this client address.
    Answer { endpoint: String, source: IpAddr },
    /// The connection was refused.
    Refused,
    /// Nothing came.
    Silence,
}

/// How long silence must last.
const PATIENCE: Duration = Duration::from_millis(400);

fn seen(reply: std::io::Result<String>) -> Seen {
    match reply {
        Ok(text) => {
            let (endpoint, source) = text.split_once(' ').unwrap();
            Seen::Answer { endpoint: endpoint.into(), source: source.parse().unwrap() }
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Seen::Refused,
        Err(error) => {
            use std::io::ErrorKind::{TimedOut, WouldBlock};
            assert!(matches!(error.kind(), TimedOut | WouldBlock), "unexpected: {error}");
            Seen::Silence
        }
    }
}

/// Dials by TCP from the calling thread's namespace.
pub(crate) fn tcp(to: SocketAddr) -> Seen {
    seen(TcpStream::connect_timeout(&to, PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }))
}

/// Opens a UDP socket to an address in the calling thread's namespace.
pub(crate) fn udp_socket(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends one packet and waits for an answer.
pub(crate) fn udp_ask(socket: &UdpSocket) -> Seen {
    let mut buffer = [0; 64];
    let sent = match socket.send(b"?") {
        // A packet refused on its way out is also an error of the call; what the refusal says
        // comes as an answer.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(0),
        sent => sent,
    };
    seen(sent.and_then(|_| {
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }))
}

/// Dials by UDP, with a new socket.
pub(crate) fn udp(to: SocketAddr) -> Seen {
    udp_ask(&udp_socket(to))
}

/// The network.
pub(crate) struct Net {
    pub(crate) node: Namespace,
    pub(crate) client: Namespace,
    pub(crate) ep1: Namespace,
    pub(crate) ep2: Namespace,
}

impl Net {
    pub(crate) fn new() -> Self {
        let net = Self {
            node: Namespace::new("node"),
            client: Namespace::new("client"),
            ep1: Namespace::new("ep1"),
            ep2: Namespace::new("ep2"),
        };
        for ns in [&net.node, &net.client, &net.ep1, &net.ep2] {
            ns.ip("link set lo up");
            ns.run(|| {
                let base = "/proc/sys/net/ipv6/conf";
                for scope in ["all", "default"] {
                    std::fs::write(format!("{base}/{scope}/accept_dad"), "0").unwrap();
                }
            });
        }
        net.node.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
            // Its default route leads back to the client: no redirects, and no limit on the
            // errors it sends.
            for scope in ["all", "default"] {
                let file = format!("/proc/sys/net/ipv4/conf/{scope}/send_redirects");
                std::fs::write(file, "0").unwrap();
            }
            std::fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").unwrap();
            std::fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0").unwrap();
        });
        net.uplink();
        net.endpoint(&net.ep1, "2");
        net.endpoint(&net.ep2, "3");
        net.ep1.serve(8080);
        net.ep2.serve(8080);
        net
    }

    fn uplink(&self) {
        let (node, client) = (&self.node, &self.client);
        node.ip(&format!("link add up0 type veth peer name eth0 netns {}", client.tid));
        node.ip("addr add 192.0.2.1/24 dev up0");
        node.ip("addr add fd01::1/64 dev up0 nodad");
        node.ip("link set up0 up");
        client.ip("addr add 192.0.2.100/24 dev eth0");
        client.ip("addr add fd01::100/64 dev eth0 nodad");
        client.ip("link set eth0 up");
        client.ip("route add default via 192.0.2.1");
        client.ip("-6 route add default via fd01::1");
        node.ip("route add default via 192.0.2.100");
        node.ip("-6 route add default via fd01::100");
    }

    fn endpoint(&self, ep: &Namespace, last: &str) {
        let (node, link) = (&self.node, format!("to-{}", ep.name));
        node.ip(&format!("link add {link} type veth peer name eth0 netns {}", ep.tid));
        node.ip(&format!("addr add 10.244.0.1/32 dev {link}"));
        node.ip(&format!("addr add fd02::1/128 dev {link} nodad"));
        node.ip(&format!("link set {link} up"));
        ep.ip(&format!("addr add 10.244.0.{last}/32 dev eth0"));
        ep.ip(&format!("addr add fd02::{last}/128 dev eth0 nodad"));
        ep.ip("link set eth0 up");
        node.ip(&format!("route add 10.244.0.{last} dev {link} src 10.244.0.1"));
        node.ip(&format!("-6 route add fd02::{last} dev {link} src fd02::1"));
        ep.ip("route add 10.244.0.1 dev eth0");
        ep.ip("route add default via 10.244.0.1");
        ep.ip("-6 route add fd02::1 dev eth0");
        ep.ip("-6 route add default via fd02::1");
    }

    pub(crate) fn namespace(&self, name: &str) -> &Namespace {
        [&self.node, &self.client, &self.ep1, &self.ep2]
            .into_iter()
            .find(|ns| ns.name == name)
            .unwrap()
    }
}
