//! Ports nobody listens on.

use std::net::{Ipv4Addr, TcpListener};

/// A TCP port of this network namespace's loopback that was free a moment ago. In a
/// [`crate::Private`] namespace nobody else takes it.
///
/// # Panics
/// No port is left.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}
