//! A container's log: its output as CRI records in a file that rotates.
//!
//! [`record`] splits output into records, [`file`] writes and rotates. A disk that fails or is full
//! never stops the container: records are dropped and counted. CRI, `logs.proto`-less convention of
//! the kubelet's `pkg/kubelet/kuberuntime/logs`.

mod file;
mod record;

pub(crate) use file::LogFile;
pub(crate) use record::{Splitter, Stream};
