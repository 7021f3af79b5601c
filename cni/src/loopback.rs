//! Host ports on the node's loopback: listeners of this process that pass bytes on to their pods.
//!
//! The kernel would translate such connections only with `route_localnet`, which opens the node's
//! loopback to its neighbours (CVE-2020-8558). So this is TCP only, the pod sees the node as its client,
//! and connections end with the process; the ports are taken again when it starts. Whoever is on the node
//! can connect: all ports together have a sixteenth of the process's descriptors.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::Error;
use crate::attachment::{AttachmentId, HostPort};
use crate::ipam::Record;
use crate::netns::NetNs;

/// How many connections one port may have at a time, where there are descriptors enough; more wait.
const CONNECTIONS: usize = 512;
/// All ports together have one connection for so many descriptors that the process may have open: each takes
/// two.
const SHARE: u64 = 32;
/// What one semaphore counts is enough.
const MOST: usize = 1 << 20;
/// How long a pod may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing is accepted after it could not be.
const PAUSE: Duration = Duration::from_millis(100);

/// The ports on loopback of one node.
#[derive(Debug)]
pub(crate) struct Loopback {
    node: NetNs,
    room: Room,
    open: Mutex<HashMap<AttachmentId, Vec<AbortHandle>>>,
}

impl Loopback {
    pub(crate) fn new(node: NetNs) -> Self {
        Self { node, room: Room::of_process(), open: Mutex::default() }
    }

    /// Listens on the attachment's loopback ports. Doing it twice does no harm.
    ///
    /// # Errors
    /// When a port is taken.
    pub(crate) async fn open(&self, record: &Record) -> Result<(), Error> {
        let (Some(pod), false) = (record.addresses.first(), self.has(&record.attachment)) else {
            return Ok(());
        };
        let mut listening = Vec::new();
        for port in record.host_ports.iter().filter(|port| is_loopback(port)) {
            let Some(ip) = port.host_ip else { continue };
            let address = SocketAddr::new(ip, port.host_port);
            let listener = self.listen(address).await?;
            let to = SocketAddr::new(*pod, port.pod_port);
            listening.push((listener, to));
        }
        if listening.is_empty() {
            return Ok(());
        }
        let serve = |(listener, to)| {
            tokio::spawn(serve(listener, self.node.clone(), to, self.room.clone())).abort_handle()
        };
        let handles = listening.into_iter().map(serve).collect();
        self.lock().insert(record.attachment.clone(), handles);
        Ok(())
    }

    /// Gives the attachment's ports back and ends what is connected through them.
    pub(crate) fn close(&self, id: &AttachmentId) {
        let handles = self.lock().remove(id);
        handles.into_iter().flatten().for_each(|handle| handle.abort());
    }

    fn has(&self, id: &AttachmentId) -> bool {
        self.lock().contains_key(id)
    }

    async fn listen(&self, address: SocketAddr) -> Result<tokio::net::TcpListener, Error> {
        let bind = move || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = self.node.inside(bind).await?;
        let listener = listener.and_then(tokio::net::TcpListener::from_std);
        listener.map_err(|error: io::Error| {
            Error::Request(format!("host port {}/tcp on {}: {error}", address.port(), address.ip()))
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AttachmentId, Vec<AbortHandle>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        open.drain().flat_map(|(_, handles)| handles).for_each(|handle| handle.abort());
    }
}

/// How many connections there may be.
#[derive(Debug, Clone)]
struct Room {
    all: Arc<Semaphore>,
    one_port: usize,
}

impl Room {
    fn of_process() -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        Self::of(limit)
    }

    /// The share of a process that may have `limit` descriptors open. One port gets no more than half of it.
    fn of(limit: u64) -> Self {
        let all = usize::try_from(limit / SHARE).unwrap_or(MOST).clamp(2, MOST);
        Self { all: Arc::new(Semaphore::new(all)), one_port: CONNECTIONS.min(all / 2) }
    }
}

/// Whether a port is on the node's loopback alone.
pub(crate) fn is_loopback(port: &HostPort) -> bool {
    port.host_ip.is_some_and(|ip| ip.is_loopback())
}

/// Passes connections on until it is dropped, and all of them with it.
async fn serve(listener: tokio::net::TcpListener, node: NetNs, to: SocketAddr, room: Room) {
    let own = Arc::new(Semaphore::new(room.one_port));
    let mut connections = JoinSet::new();
    loop {
        // They are never closed.
        let Ok(own) = Arc::clone(&own).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%to, %error, "a connection to a host port is not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Not before: ports that nobody uses would keep it from others.
        let Ok(shared) = Arc::clone(&room.all).acquire_owned().await else { return };
        let node = node.clone();
        connections.spawn(async move {
            let _place = (own, shared);
            if let Err(error) = pass(client, &node, to).await {
                tracing::debug!(%to, %error, "a connection to a host port ended");
            }
        });
    }
}

async fn pass(mut client: TcpStream, node: &NetNs, to: SocketAddr) -> io::Result<()> {
    let family = match to.ip() {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let make = move || socket(family, SockType::Stream, flags, None);
    let made: nix::Result<OwnedFd> = node.inside(make).await.map_err(io::Error::other)?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(made?));
    let connected = tokio::time::timeout(PATIENCE, socket.connect(to)).await;
    let mut pod = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    tokio::io::copy_bidirectional(&mut client, &mut pod).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_leaves_room_for_another_and_all_of_them_for_the_rest() {
        for (limit, all, one_port) in
            [(0, 2, 1), (256, 8, 4), (1024, 32, 16), (1 << 19, 1 << 14, 512), (u64::MAX, MOST, 512)]
        {
            let room = Room::of(limit);
            assert_eq!((room.all.available_permits(), room.one_port), (all, one_port), "{limit}");
        }
    }
}
