//! Connections into a pod's network, as port-forward needs them.
//!
//! A socket belongs to the network namespace of the thread that makes it, and stays there. So a thread
//! of its own enters the pod's namespace, makes the socket and ends; connecting is done here.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use super::failed;
use super::sandbox::Sandbox;
use crate::interface::{NamespaceMode, RuntimeError};

/// How long a connection within one host may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a port of the pod's loopback; of the host's, where the pod uses its network.
pub(super) async fn loopback(sandbox: &Sandbox, port: u16) -> Result<TcpStream, RuntimeError> {
    let namespace = match sandbox.config.network {
        NamespaceMode::Pod => Some(sandbox.dir.network_namespace()),
        NamespaceMode::Host => None,
    };
    let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let mut first = None;
    for address in addresses {
        let address = SocketAddr::new(address, port);
        match connect(namespace.clone(), address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => first = first.or(Some((address, error))),
        }
    }
    match first {
        Some((address, error)) => {
            let id = &sandbox.id;
            Err(failed(format!("sandbox {id}: connect to {address} inside the pod"), error))
        }
        None => Err(RuntimeError::Invalid("no address to connect to".to_owned())),
    }
}

async fn connect(namespace: Option<PathBuf>, address: SocketAddr) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = match namespace {
        Some(namespace) => inside(namespace, family).await?,
        None => stream_socket(family)?,
    };
    let socket = TcpSocket::from_std_stream(socket.into());
    match tokio::time::timeout(PATIENCE, socket.connect(address)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Makes a socket in a namespace, on a thread that ends with it.
async fn inside(namespace: PathBuf, family: AddressFamily) -> io::Result<OwnedFd> {
    let (done, made) = oneshot::channel();
    let make = move || {
        let namespace = File::open(&namespace)?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        stream_socket(family)
    };
    std::thread::Builder::new().name("berth-dial".into()).spawn(move || {
        // Whoever asked may have gone; the socket then closes here.
        let _ = done.send(make());
    })?;
    made.await.map_err(io::Error::other)?
}

fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}
