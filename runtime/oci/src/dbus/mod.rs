//! A D-Bus client for calls to systemd: one connection, one call at a time, a deadline on each.
//!
//! Written here because the kept crates are asynchronous or bring threads and macros with them, and
//! would be the largest part of a small executable; what is needed of the protocol is little. It sends
//! no descriptors and serves no objects. D-Bus Specification, "Authentication Protocol".

mod message;
mod wire;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub(crate) use self::message::Method;
use self::message::{FIXED_HEADER, Incoming};
pub(crate) use self::wire::Value;
use crate::clock;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The socket failed.
    #[error("{operation}: {source}")]
    Socket { operation: &'static str, source: Errno },
    /// The other end did not answer.
    #[error("no answer before the deadline while waiting to {0}")]
    Deadline(&'static str),
    /// The other end closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// The other end does not take us for who we are.
    #[error("authentication was refused: {0:?}")]
    Authentication(String),
    /// Bytes that are no message.
    #[error("{0} in a message is malformed")]
    Malformed(&'static str),
    /// The other end refused.
    #[error("{name}: {text}")]
    Refused { name: String, text: String },
}

impl Error {
    /// Whether it is this error of the other end, by its full name.
    pub(crate) fn is(&self, expected: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name == expected)
    }
}

type Result<T> = std::result::Result<T, Error>;

/// A signal that arrived.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Signal {
    /// The unique name of who sent it; empty without a bus between.
    pub(crate) sender: String,
    pub(crate) interface: String,
    pub(crate) member: String,
    pub(crate) body: Vec<Value>,
}

/// Signals kept that nobody has asked for yet; the oldest are dropped.
const KEPT_SIGNALS: usize = 256;

/// An authenticated connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    serial: u32,
    received: Vec<u8>,
    signals: VecDeque<Signal>,
}

const BUS: &str = "org.freedesktop.DBus";

impl Connection {
    /// Connects to the Unix socket of a peer or of a bus. `deadline_ms` is of the monotonic clock, here
    /// and below.
    pub(crate) fn open(path: &Path, deadline_ms: u64) -> Result<Self> {
        let failed = |source| Error::Socket { operation: "connect", source };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        // A Unix socket connects at once, or has a full backlog: EAGAIN.
        rustix::net::connect(&socket, &address).map_err(failed)?;
        Self::authenticate(socket, deadline_ms)
    }

    /// Takes over a non-blocking socket to the other end.
    fn authenticate(socket: OwnedFd, deadline_ms: u64) -> Result<Self> {
        let mut connection =
            Self { socket, serial: 0, received: Vec::new(), signals: VecDeque::new() };
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        let greeting = format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n");
        connection.send(greeting.as_bytes(), deadline_ms)?;
        let line = connection.receive_line(deadline_ms)?;
        if line.starts_with("OK ") { Ok(connection) } else { Err(Error::Authentication(line)) }
    }

    /// Makes this connection known to a bus.
    pub(crate) fn hello(&mut self, deadline_ms: u64) -> Result<()> {
        self.call(&bus_method("Hello"), &[], deadline_ms).map(drop)
    }

    /// Has a bus deliver the signals that a rule matches.
    pub(crate) fn add_match(&mut self, rule: &str, deadline_ms: u64) -> Result<()> {
        self.call(&bus_method("AddMatch"), &[rule.into()], deadline_ms).map(drop)
    }

    /// The unique name of who owns a well-known one on a bus.
    pub(crate) fn owner_of(&mut self, name: &str, deadline_ms: u64) -> Result<String> {
        let reply = self.call(&bus_method("GetNameOwner"), &[name.into()], deadline_ms)?;
        match reply.as_slice() {
            [Value::Text(owner)] => Ok(owner.clone()),
            _ => Err(Error::Malformed("an owner's name")),
        }
    }

    /// Calls a method and waits for its reply. Signals that come before it are kept.
    pub(crate) fn call(
        &mut self,
        method: &Method<'_>,
        arguments: &[Value],
        deadline_ms: u64,
    ) -> Result<Vec<Value>> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&message::encode_call(serial, method, arguments), deadline_ms)?;
        loop {
            match self.receive(deadline_ms)? {
                Incoming::Reply { to, body } if to == serial => return Ok(body),
                Incoming::Error { to, name, body } if to == serial => {
                    let text = match body.into_iter().next() {
                        Some(Value::Text(text)) => text,
                        _ => String::new(),
                    };
                    return Err(Error::Refused { name, text });
                }
                other => self.keep(other),
            }
        }
    }

    /// The next signal that `wanted` takes, among those kept and those to come.
    pub(crate) fn wait_signal(
        &mut self,
        wanted: impl Fn(&Signal) -> bool,
        deadline_ms: u64,
    ) -> Result<Signal> {
        loop {
            if let Some(index) = self.signals.iter().position(&wanted)
                && let Some(signal) = self.signals.remove(index)
            {
                return Ok(signal);
            }
            let message = self.receive(deadline_ms)?;
            self.keep(message);
        }
    }

    fn keep(&mut self, message: Incoming) {
        if let Incoming::Signal { sender, interface, member, body } = message {
            if self.signals.len() == KEPT_SIGNALS {
                self.signals.pop_front();
            }
            self.signals.push_back(Signal { sender, interface, member, body });
        }
    }

    fn wait(&self, flags: PollFlags, what: &'static str, deadline_ms: u64) -> Result<()> {
        loop {
            let left = deadline_ms.saturating_sub(clock::monotonic_ms());
            if left == 0 {
                return Err(Error::Deadline(what));
            }
            let timeout = Timespec {
                tv_sec: (left / 1000) as i64,
                tv_nsec: (left % 1000 * 1_000_000) as i64,
            };
            match poll(&mut [PollFd::new(&self.socket, flags)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(source) => return Err(Error::Socket { operation: "poll", source }),
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8], deadline_ms: u64) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, "send", deadline_ms)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::Closed),
                Err(source) => return Err(Error::Socket { operation: "send", source }),
            }
        }
        Ok(())
    }

    /// Reads more, waiting for it.
    fn fill(&mut self, deadline_ms: u64) -> Result<()> {
        let mut chunk = [0; 4096];
        loop {
            match rustix::io::read(&self.socket, &mut chunk) {
                Ok(0) | Err(Errno::CONNRESET) => return Err(Error::Closed),
                Ok(count) => {
                    self.received.extend_from_slice(&chunk[..count]);
                    return Ok(());
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, "receive", deadline_ms)?,
                Err(Errno::INTR) => {}
                Err(source) => return Err(Error::Socket { operation: "receive", source }),
            }
        }
    }

    fn receive_line(&mut self, deadline_ms: u64) -> Result<String> {
        const LONGEST: usize = 1024;
        loop {
            if let Some(end) = self.received.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.received[..end]).into_owned();
                self.received.drain(..end + 2);
                return Ok(line);
            }
            if self.received.len() > LONGEST {
                return Err(Error::Malformed("the authentication's line"));
            }
            self.fill(deadline_ms)?;
        }
    }

    fn receive(&mut self, deadline_ms: u64) -> Result<Incoming> {
        // A flood of messages must not outlast the deadline either.
        if clock::monotonic_ms() >= deadline_ms {
            return Err(Error::Deadline("receive"));
        }
        loop {
            if let Some(header) = self.received.first_chunk::<FIXED_HEADER>() {
                let size = message::size(header)?;
                if self.received.len() >= size {
                    let message = message::decode(&self.received[..size])?;
                    self.received.drain(..size);
                    return Ok(message);
                }
            }
            self.fill(deadline_ms)?;
        }
    }
}

fn bus_method(member: &str) -> Method<'_> {
    Method { destination: BUS, path: "/org/freedesktop/DBus", interface: BUS, member }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::message::fake;
    use super::*;

    const METHOD: Method<'static> =
        Method { destination: "d.d", path: "/d", interface: "d.d", member: "Do" };

    /// A connection to what `serve` does with the other end.
    fn connected(serve: impl FnOnce(UnixStream) + Send + 'static) -> Result<Connection> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        thread::spawn(move || serve(theirs));
        Connection::authenticate(ours.into(), soon(10_000))
    }

    fn soon(milliseconds: u64) -> u64 {
        clock::monotonic_ms() + milliseconds
    }

    fn greet(stream: &mut UnixStream) {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(b"BEGIN\r\n") {
            stream.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        assert!(seen.starts_with(b"\0AUTH EXTERNAL 3"), "{seen:?}");
        stream.write_all(b"OK 0123456789abcdef\r\n").unwrap();
    }

    /// Reads one call and returns what it is about.
    fn take_call(stream: &mut UnixStream) -> Vec<u8> {
        let mut header = [0; FIXED_HEADER];
        stream.read_exact(&mut header).unwrap();
        let mut bytes = header.to_vec();
        bytes.resize(message::size(&header).unwrap(), 0);
        stream.read_exact(&mut bytes[FIXED_HEADER..]).unwrap();
        bytes
    }

    #[test]
    fn a_reply_is_found_among_signals_and_the_signals_are_kept() {
        let mut connection = connected(|mut stream| {
            greet(&mut stream);
            take_call(&mut stream);
            let job = [Value::Uint32(4), Value::Path("/job/4".to_owned())];
            let mut bytes = fake::signal(":1.0", "JobNew", &job);
            bytes.extend(fake::reply(99, &["another's".into()]));
            bytes.extend(fake::signal(":1.0", "JobRemoved", &job));
            bytes.extend(fake::reply(1, &[Value::Path("/job/4".to_owned())]));
            // In pieces, so that messages are put together again.
            for piece in bytes.chunks(7) {
                stream.write_all(piece).unwrap();
            }
        })
        .unwrap();
        let reply = connection.call(&METHOD, &["x".into()], soon(10_000)).unwrap();
        assert_eq!(reply, [Value::Path("/job/4".to_owned())]);
        let wanted = |signal: &Signal| signal.member == "JobRemoved";
        let signal = connection.wait_signal(wanted, soon(10_000)).unwrap();
        assert_eq!((signal.sender.as_str(), signal.body.len()), (":1.0", 2));
        let again = connection.wait_signal(wanted, soon(10_000));
        assert!(matches!(again, Err(Error::Closed)), "{again:?}");
    }

    #[test]
    fn one_that_never_answers_is_left_at_the_deadline() {
        let mut connection = connected(|mut stream| {
            greet(&mut stream);
            // Reads all there is and says nothing.
            let _ = stream.read_to_end(&mut Vec::new());
        })
        .unwrap();
        let began = clock::monotonic_ms();
        let result = connection.call(&METHOD, &[], soon(50));
        assert!(matches!(result, Err(Error::Deadline("receive"))), "{result:?}");
        assert!(clock::monotonic_ms() - began < 5_000);
    }

    #[test]
    fn one_that_sends_signals_for_ever_is_left_at_the_deadline() {
        let mut connection = connected(|mut stream| {
            greet(&mut stream);
            let signal = fake::signal(":1.0", "UnitNew", &[]);
            while stream.write_all(&signal).is_ok() {}
        })
        .unwrap();
        let result = connection.call(&METHOD, &[], soon(50));
        assert!(matches!(result, Err(Error::Deadline(_))), "{result:?}");
        assert!(connection.signals.len() <= KEPT_SIGNALS);
    }

    #[test]
    fn one_that_takes_nothing_is_left_at_the_deadline() {
        let mut connection = connected(|mut stream| {
            greet(&mut stream);
            thread::park_timeout(std::time::Duration::from_secs(5));
        })
        .unwrap();
        let argument = Value::Text("x".repeat(1 << 20));
        let result = connection.call(&METHOD, &[argument], soon(50));
        assert!(matches!(result, Err(Error::Deadline("send"))), "{result:?}");
    }

    #[test]
    fn refusals_carry_their_name() {
        let mut connection = connected(|mut stream| {
            greet(&mut stream);
            take_call(&mut stream);
            stream.write_all(&fake::error(1, "org.x.UnitExists", "is there")).unwrap();
        })
        .unwrap();
        let error = connection.call(&METHOD, &[], soon(10_000)).unwrap_err();
        assert!(error.is("org.x.UnitExists") && error.to_string().contains("is there"));
    }

    #[test]
    fn refused_authentication_and_garbage_are_errors() {
        let refused = connected(|mut stream| {
            stream.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        assert!(matches!(refused, Err(Error::Authentication(_))));
        let mut connection = connected(|mut stream| {
            greet(&mut stream);
            stream.write_all(&[0xff; 64]).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        })
        .unwrap();
        let result = connection.call(&METHOD, &[], soon(10_000));
        assert!(matches!(result, Err(Error::Malformed(_))), "{result:?}");
    }
}
