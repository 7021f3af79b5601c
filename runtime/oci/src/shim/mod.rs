//! The shim: parent and reaper of a pod's containers, one process a pod.
//!
//! Single-threaded and driven by poll(2); it never waits for a client, a container or a disk that is
//! full. [`sandbox`] holds the pod's namespaces, [`container`] the state machine of one container,
//! [`execution`] that of a further process, [`connection`] a client, [`server`] ties them together.
//! It outlives the agent; containers do not outlive it.

mod attachment;
mod connection;
mod container;
mod execution;
mod progress;
mod requests;
pub(crate) mod sandbox;
mod server;
mod store;

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::DumpableBehavior;

use crate::container::{Doing, Error, Result, rootfd};
use crate::protocol::ShimConfig;
use crate::sys;

/// The descriptor on which readiness is told, when it is open.
const READY_DESCRIPTOR: i32 = 3;

/// Runs a shim until it is shut down. Errors before it listens go to the caller.
pub(crate) fn run(directory: &Path) -> Result<()> {
    let ready = sys::adopt_descriptor(READY_DESCRIPTOR);
    sys::close_range_from(READY_DESCRIPTOR + 1).doing(|| "close inherited descriptors")?;
    rootfd::require_openat2().doing(|| "confine a lookup by openat2(2)")?;
    become_reaper()?;
    let config = read_config(directory)?;
    let sandbox = sandbox::Sandbox::make(directory, &config)?;
    let listener = match listen(directory) {
        Ok(listener) => listener,
        Err(error) => {
            sandbox.release();
            return Err(error);
        }
    };
    let mut server = server::Server::new(directory.to_owned(), config, sandbox, listener)?;
    if let Some(descriptor) = ready {
        // An agent that does not listen for it watches for the socket instead.
        let _ = std::fs::File::from(descriptor).write_all(b"ready\n");
    }
    detach_streams()?;
    server.serve()
}

fn become_reaper() -> Result<()> {
    sys::reset_signals();
    sys::block_signals().doing(|| "block signals")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "become undumpable")?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .doing(|| "become a subreaper")?;
    // Fails only for a process that leads a group already, which serves as well.
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    Ok(())
}

fn read_config(directory: &Path) -> Result<ShimConfig> {
    let path = directory.join("sandbox.json");
    let text = std::fs::read(&path).doing(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::invalid(path.display().to_string(), error.to_string()))
}

/// Binds under a temporary name and renames: the socket's existence means that somebody listens.
fn listen(directory: &Path) -> Result<UnixListener> {
    let temporary = directory.join("shim.sock.new");
    let path = directory.join("shim.sock");
    let operation = || format!("listen on {}", path.display());
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).doing(operation);
        }
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).doing(operation)?;
    listener.set_nonblocking(true).doing(operation)?;
    rustix::fs::chmodat(CWD, &temporary, Mode::from_raw_mode(0o600), rustix::fs::AtFlags::empty())
        .doing(operation)?;
    std::fs::rename(&temporary, &path).doing(operation)?;
    Ok(listener)
}

fn detach_streams() -> Result<()> {
    let operation = || "detach from the standard streams";
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).doing(operation)?;
    rustix::stdio::dup2_stdin(null.as_fd()).doing(operation)?;
    rustix::stdio::dup2_stdout(null.as_fd()).doing(operation)?;
    rustix::stdio::dup2_stderr(null.as_fd()).doing(operation)?;
    rustix::process::chdir("/").doing(operation)
}

/// Where a container's record lives.
fn record_directory(sandbox: &Path, id: &str) -> PathBuf {
    sandbox.join("containers").join(id)
}
