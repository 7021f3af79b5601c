//! What the end-to-end tests share: leak census, private namespaces, temporary roots, waiting.
//!
//! Owns no test. Everything here panics with a plain message when the machine lacks what it needs,
//! privilege above all; nothing is ever skipped.

pub mod census;
pub mod fabric;
pub mod namespaces;
pub mod peers;
pub mod port;
pub mod roots;
pub mod selinux;
pub mod tracer;
pub mod wait;

pub use census::{Census, Difference, Scope};
pub use fabric::{Fabric, Netns};
pub use namespaces::{Private, require_root};
pub use peers::{kubectl, peer};
pub use port::free_port;
pub use roots::Roots;
pub use tracer::{Followed, Tracer};
pub use wait::wait_until;
