//! Sandboxes, containers and images on one host.
//!
//! [`interface`] is the seam to the pod worker; [`images`] and [`engine`] implement it. [`cgroup`],
//! [`grpc`], [`logs`] and [`mount_table`] are used by the kubelet and the command line as well. The crate knows
//! nothing of Kubernetes types, of the pod network's making or of Services.

pub mod cgroup;
mod checkpoint;
pub mod cri;
pub mod descriptors;
mod disk;
pub mod engine;
pub mod executable;
pub mod grpc;
pub mod images;
pub mod interface;
pub mod logs;
pub mod mount_table;
#[allow(unsafe_code)]
mod sys;

pub use berth_oci::apparmor_is_enabled;
pub use engine::apparmor::unload_default as unload_default_apparmor;
pub use engine::selinux::has_selinux;
