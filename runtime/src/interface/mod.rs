//! The seam between the pod worker and what runs pods: plain values and three traits.
//!
//! Shaped after CRI v1 (`RuntimeService`, `ImageService`), so that a CRI server can sit on the same
//! traits. It holds no Kubernetes types. [`Runtime`] and [`Images`] are implemented by
//! [`crate::engine`] and by the kubelet's fake; [`PodNetwork`] is implemented by the binary over the
//! `cni` crate, and by fakes.

mod config;
mod ids;
mod images;
mod network;
mod runtime;
mod session;
mod usage;

pub use self::config::*;
pub use self::ids::*;
pub use self::images::*;
pub use self::network::*;
pub use self::runtime::*;
pub use self::session::*;
pub use self::usage::*;
