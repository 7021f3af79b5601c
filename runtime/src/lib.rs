//! Sandboxes, containers and images on one host.

pub mod interface;
