//! Drives `berth-oci unpack`: one process a layer, fed compressed bytes, which confines itself and
//! answers with what it made. This side trusts nothing but the exit status and one JSON line.

use std::io;
use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;

use super::digest::Digest;
use crate::executable::Executable;

/// The most that is read of the unpacker's own output.
const MAX_OUTPUT_BYTES: u64 = 64 << 10;

/// What one layer may become on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of unpacked files.
    pub max_bytes: u64,
    /// Files, directories and links.
    pub max_entries: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { max_bytes: 32 << 30, max_entries: 4_000_000 }
    }
}

/// What the unpacker made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Unpacked {
    /// The digest of the uncompressed layer.
    pub(crate) diff_id: Digest,
    /// Bytes of unpacked files.
    pub(crate) bytes: u64,
    /// Files, directories and links.
    pub(crate) entries: u64,
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("start the unpacker")]
    Start(#[source] io::Error),
    #[error("talk to the unpacker")]
    Talk(#[source] io::Error),
    #[error("{0}")]
    Rejected(String),
}

/// A running unpacker. Dropping it kills the process.
pub(crate) struct Unpacker {
    child: Child,
    input: Option<ChildStdin>,
    output: JoinHandle<io::Result<Vec<u8>>>,
    errors: JoinHandle<io::Result<Vec<u8>>>,
}

impl Unpacker {
    pub(crate) fn start(
        executable: &Executable,
        target: &Path,
        budget: Budget,
    ) -> Result<Self, Error> {
        let mut command = executable.command();
        command
            .arg("unpack")
            .arg("--root")
            .arg(target)
            .arg("--max-bytes")
            .arg(budget.max_bytes.to_string())
            .arg("--max-entries")
            .arg(budget.max_entries.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Command::from(command).kill_on_drop(true).spawn().map_err(Error::Start)?;
        let missing = || Error::Start(io::Error::other("a standard stream is missing"));
        let output = child.stdout.take().ok_or_else(missing)?;
        let errors = child.stderr.take().ok_or_else(missing)?;
        Ok(Self {
            input: child.stdin.take(),
            output: tokio::spawn(read_some(output)),
            errors: tokio::spawn(read_some(errors)),
            child,
        })
    }

    /// Passes compressed bytes on. Once the unpacker has given up, they are dropped and
    /// [`Self::has_given_up`] is true; [`Self::finish`] then says why.
    pub(crate) async fn feed(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(input) = &mut self.input else {
            return Ok(());
        };
        match input.write_all(bytes).await {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.input = None;
                Ok(())
            }
            outcome => outcome.map_err(Error::Talk),
        }
    }

    /// Whether the unpacker reads no more.
    pub(crate) fn has_given_up(&self) -> bool {
        self.input.is_none()
    }

    /// Kills the process and waits for its end.
    pub(crate) async fn abort(mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!(%error, "an unpacker could not be ended");
        }
    }

    /// Ends the input and takes the verdict.
    pub(crate) async fn finish(mut self) -> Result<Unpacked, Error> {
        drop(self.input.take());
        let status = self.child.wait().await.map_err(Error::Talk)?;
        let output = joined(self.output).await?;
        let errors = joined(self.errors).await?;
        if !status.success() {
            let text = String::from_utf8_lossy(&errors);
            let line = text.lines().rfind(|line| !line.trim().is_empty());
            let message =
                line.map_or_else(|| format!("the unpacker ended with {status}"), printable);
            return Err(Error::Rejected(message));
        }
        serde_json::from_slice(&output).map_err(|error| Error::Talk(error.into()))
    }
}

/// The line without control characters, shortened: it may quote names out of the layer.
fn printable(line: &str) -> String {
    line.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(500).collect()
}

async fn joined(task: JoinHandle<io::Result<Vec<u8>>>) -> Result<Vec<u8>, Error> {
    match task.await {
        Ok(read) => read.map_err(Error::Talk),
        Err(error) => Err(Error::Talk(io::Error::other(error))),
    }
}

async fn read_some(mut source: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    (&mut source).take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes).await?;
    tokio::io::copy(&mut source, &mut tokio::io::sink()).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_names_cannot_forge_further_lines() {
        assert_eq!(printable("bad \u{1b}[2J name\r"), "bad ?[2J name");
    }
}
