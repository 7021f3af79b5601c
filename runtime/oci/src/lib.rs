//! The process side of containers: container init, pod shim, layer unpacker.

pub mod protocol;
