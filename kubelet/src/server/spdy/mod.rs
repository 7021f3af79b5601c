//! SPDY/3.1 as far as exec, attach and port-forward use it: a server for the clients of Kubernetes
//! (kubectl before WebSocket, API servers up to 1.35, crictl), on a connection of its own or tunnelled
//! in WebSocket messages. No HTTP in it: streams carry headers, bytes and their end.

mod dictionary;
pub(crate) mod frame;
pub(crate) mod headers;
pub(crate) mod session;

#[cfg(test)]
mod tests;
