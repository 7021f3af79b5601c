//! Checkpoints of running containers (KEP-2008): criu's images of the processes, and an archive of them
//! with what belongs to them, laid out as containerd and CRI-O lay it out.
//!
//! ```text
//! mounts, network: what criu is told (pure) ─► criu: the dump ─► archive
//! layer ─► entry: what the container wrote to its root, as an OCI layer ─┘
//! ```
//! criu(8) is the host's own program. Which container is meant, and where things are, [`crate::engine`]
//! knows. Archives are only written: nothing here restores one.

mod archive;
mod criu;
mod entry;
mod layer;
mod mounts;
mod network;
mod sink;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use self::archive::{Files, pack};
pub(crate) use self::criu::{Dump, Running, find, is_over, refusal, start, write_hold};
pub(crate) use self::layer::write as write_layer;
pub(crate) use self::mounts::external as external_mounts;
pub(crate) use self::network::is_connected;
pub(crate) use self::sink::Limits;

/// Why a container was not checkpointed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The host has no criu.
    #[error("the host has no criu, which writes checkpoints (Debian's package criu)")]
    Missing,
    /// criu did not come to run, or what it says cannot be read.
    #[error("cannot run {program:?}")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// criu refused the container, which goes on.
    #[error("criu: {0}")]
    Refused(String),
    /// The time was over.
    #[error("not done within {0:?}")]
    Deadline(Duration),
    /// The container ended meanwhile.
    #[error("the container ended meanwhile")]
    Ended,
}
