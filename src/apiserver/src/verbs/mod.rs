//! The verbs of the API, each on the store, none of them aware of connections.

pub(crate) mod body;
pub(crate) mod connect;
pub(crate) mod delete;
pub(crate) mod log;
pub(crate) mod log_socket;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod proxy;
pub(crate) mod read;
pub(crate) mod review;
pub(crate) mod token;
pub(crate) mod watch;
pub(crate) mod write;
