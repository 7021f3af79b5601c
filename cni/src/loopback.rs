//! Host ports on the node's loopback: listeners of this process that pass bytes on to their pods.
//!
//! The kernel would translate such connections only with `route_localnet`, which opens the node's
//! loopback to its neighbours (CVE-2020-8558). So this is TCP only, the pod sees the node as its client,
//! and connections end with the process; the ports are taken again when it starts.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::Error;
use crate::attachment::{AttachmentId, HostPort};
use crate::ipam::Record;
use crate::netns::NetNs;

/// How many connections one port may have at a time; more wait.
const CONNECTIONS: usize = 512;
/// How long a pod may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing is accepted after it could not be.
const PAUSE: Duration = Duration::from_millis(100);

/// The ports on loopback of one node.
#[derive(Debug)]
pub(crate) struct Loopback {
    node: NetNs,
    open: Mutex<HashMap<AttachmentId, Vec<AbortHandle>>>,
}

impl Loopback {
    pub(crate) fn new(node: NetNs) -> Self {
        Self { node, open: Mutex::default() }
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
        let serve =
            |(listener, to)| tokio::spawn(serve(listener, self.node.clone(), to)).abort_handle();
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

/// Whether a port is on the node's loopback alone.
pub(crate) fn is_loopback(port: &HostPort) -> bool {
    port.host_ip.is_some_and(|ip| ip.is_loopback())
}

/// Passes connections on until it is dropped, and all of them with it.
async fn serve(listener: tokio::net::TcpListener, node: NetNs, to: SocketAddr) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%to, %error, "a connection to a host port is not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let node = node.clone();
        connections.spawn(async move {
            let _place = place;
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
