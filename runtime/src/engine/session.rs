//! Exec and attach: asks the shim, receives descriptors, and makes a [`Session`] of them.
//!
//! The bytes of a session pass through neither the shim (exec) nor a buffer of the engine; the
//! connection to the shim stays open for the end alone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use berth_oci::protocol::{self, Attach, Descriptor, FailureKind, Request};

use super::container::{Container, ORDER_PATIENCE};
use super::failed;
use super::sandbox::Sandbox;
use super::shim::{self, Ending, Shim};
use super::stream::{Master, Stream};
use crate::interface::{
    ContainerState, Exec, RuntimeError, Session, SessionEnd, SessionInput, SessionOutput, Streams,
    Terminal,
};

/// What may pass until a command is executed or streams are handed over.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);

/// The shim of a container that must be running.
pub(super) fn running_shim(
    sandbox: &Sandbox,
    container: &Container,
) -> Result<Arc<Shim>, RuntimeError> {
    let running = matches!(container.state(), ContainerState::Running { .. });
    sandbox
        .shim()
        .filter(|_| running)
        .ok_or_else(|| RuntimeError::Invalid(format!("container {} is not running", container.id)))
}

/// Runs a command in a container.
pub(super) async fn exec(
    sandbox: &Sandbox,
    container: &Container,
    exec: Exec,
) -> Result<Session, RuntimeError> {
    let request = Request::Exec(Box::new(protocol::Exec {
        id: container.id.to_string(),
        args: exec.command,
        streams: streams(exec.streams),
        tty: exec.tty,
        size: exec.size.map(|s| protocol::TerminalSize { columns: s.columns, rows: s.rows }),
    }));
    open(sandbox, container, &request, "execute a command in").await
}

/// Joins a container's streams.
pub(super) async fn attach(
    sandbox: &Sandbox,
    container: &Container,
    wanted: Streams,
) -> Result<Session, RuntimeError> {
    let request =
        Request::Attach(Attach { id: container.id.to_string(), streams: streams(wanted) });
    open(sandbox, container, &request, "attach to").await
}

/// Opens a container's log anew.
pub(super) async fn reopen_log(
    sandbox: &Sandbox,
    container: &Container,
) -> Result<(), RuntimeError> {
    let shim = running_shim(sandbox, container)?;
    let request = Request::ReopenLog { id: container.id.to_string() };
    let ordered = shim.order(&request, ORDER_PATIENCE).await;
    let operation = format!("open the log of container {} anew", container.id);
    ordered.map_err(|error| refusal(operation, error))
}

fn streams(streams: Streams) -> protocol::Streams {
    let Streams { stdin, stdout, stderr } = streams;
    protocol::Streams { stdin, stdout, stderr }
}

async fn open(
    sandbox: &Sandbox,
    container: &Container,
    request: &Request,
    operation: &str,
) -> Result<Session, RuntimeError> {
    let operation = format!("{operation} container {}", container.id);
    let shim = running_shim(sandbox, container)?;
    let opened = shim.open(request, OPEN_PATIENCE).await;
    let (descriptors, ending) = opened.map_err(|error| refusal(operation.clone(), error))?;
    let waiting = format!("{operation}: wait for the end");
    session(descriptors, ending, waiting).map_err(|error| failed(operation, error))
}

/// What a refusal of the shim means to the caller.
pub(super) fn refusal(operation: String, error: shim::Error) -> RuntimeError {
    let shim::Error::Refused(failure) = error else { return failed(operation, error) };
    match failure.kind {
        FailureKind::Start => RuntimeError::Start {
            exit_code: failure.exit_code.unwrap_or(128),
            message: failure.message,
        },
        FailureKind::NotFound => RuntimeError::NotFound(failure.message),
        FailureKind::Invalid | FailureKind::State => RuntimeError::Invalid(failure.message),
        FailureKind::Create | FailureKind::Host => failed(operation, failure),
    }
}

fn session(
    descriptors: Vec<(Descriptor, OwnedFd)>,
    ending: Ending,
    operation: String,
) -> io::Result<Session> {
    let mut session = Session {
        stdin: None,
        stdout: None,
        stderr: None,
        terminal: None,
        end: Box::pin(async move {
            let ended = ending.wait().await.map_err(|error| failed(operation, error))?;
            let (exit_code, dropped_bytes) = ended;
            Ok(SessionEnd { exit_code, dropped_bytes })
        }),
    };
    for (kind, fd) in descriptors {
        match kind {
            Descriptor::Stdin => {
                session.stdin = Some(Box::pin(Stream::writing(fd)?) as SessionInput);
            }
            Descriptor::Stdout => {
                session.stdout = Some(Box::pin(Stream::reading(fd)?) as SessionOutput);
            }
            Descriptor::Stderr => {
                session.stderr = Some(Box::pin(Stream::reading(fd)?) as SessionOutput);
            }
            Descriptor::Terminal => {
                session.terminal = Some(Arc::new(Master(fd)) as Arc<dyn Terminal>);
            }
        }
    }
    Ok(session)
}
