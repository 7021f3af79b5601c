//! A container's log: its output as CRI records in a file that rotates.
//!
//! [`record`] splits output into records, in the shim. [`link`] hands them to [`writer`], a process that
//! alone touches the disk: [`file`] writes and rotates, [`rotation`] names and prunes, [`compress`]
//! compresses old files. A disk that is slow, fails or is full never stops a container for longer than
//! [`link`]'s policy says: records are dropped and counted. CRI, `logs.proto`-less convention of the
//! kubelet's `pkg/kubelet/kuberuntime/logs`.

mod compress;
mod file;
mod link;
mod message;
mod record;
mod rotation;
mod writer;

pub(crate) use file::probe;
pub(crate) use link::{Birthplace, Key, Link};
pub(crate) use record::{Splitter, Stream};
