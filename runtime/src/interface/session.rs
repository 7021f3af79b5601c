//! Live streams of a process in a container: exec and attach.
//!
//! A [`Session`] is plain ends of pipes, or of a terminal; whoever serves it (SPDY, WebSocket, a local
//! command) copies bytes. CRI v1 `Exec` and `Attach` say what the operations mean.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use super::RuntimeError;

/// Which standard streams a session carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// Towards the process.
    pub stdin: bool,
    /// From the process; everything it prints where it has a terminal.
    pub stdout: bool,
    /// From the process; never with a terminal.
    pub stderr: bool,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// A further process of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// The streams asked for. What is not asked for reads as empty, or is discarded.
    pub streams: Streams,
    /// A terminal of the container's own instead of pipes.
    pub tty: bool,
    /// The terminal's size from the start, where it is known.
    pub size: Option<TerminalSize>,
}

/// Bytes to a process. Dropping it is the end of its input, unless the input is a terminal or a
/// container's that stays open between sessions.
pub type SessionInput = Pin<Box<dyn AsyncWrite + Send>>;

/// Bytes from a process. It ends when the last process that holds the stream closes it, which may be
/// after [`Session::end`].
pub type SessionOutput = Pin<Box<dyn AsyncRead + Send>>;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionEnd {
    /// The exit code of the process, or 128 + signal; for attach, the container's.
    pub exit_code: i32,
    /// Bytes of output that this session was not given, because it did not take them for so long that
    /// the container would have had to wait. Only attach loses any.
    pub dropped_bytes: u64,
}

/// Changes the size of a session's terminal.
pub trait Terminal: Send + Sync {
    /// Sets the size; the foreground processes get `SIGWINCH`. Does not block.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn resize(&self, size: TerminalSize) -> io::Result<()>;
}

/// Open streams of a process.
///
/// Dropping all of it ends the session and never the process as such: a process with pipes sees the end
/// of its input and a broken pipe, one with a terminal of its own sees it hang up. What an attach
/// session leaves runs on.
pub struct Session {
    /// Present when asked for, and when the container has an input that is still open: `stdinOnce`
    /// gives it to the first session only. Where it is absent, the peer's bytes are discarded.
    pub stdin: Option<SessionInput>,
    /// Present when asked for.
    pub stdout: Option<SessionOutput>,
    /// Present when asked for and there is no terminal.
    pub stderr: Option<SessionOutput>,
    /// Present when the process has a terminal.
    pub terminal: Option<Arc<dyn Terminal>>,
    /// Resolves when the process has ended (attach: the container, with its output complete); an
    /// error when that is never to be known, the shim being lost. Dropping it changes nothing for an
    /// exec and detaches an attach.
    pub end: BoxFuture<'static, Result<SessionEnd, RuntimeError>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("terminal", &self.terminal.is_some())
            .finish_non_exhaustive()
    }
}
