//! What bounds the writing of an archive: time, and room that is left to others.

use std::fs::File;
use std::io::{self, Write};
use std::time::Instant;

/// What is left free on the file system that an archive is written to.
const ROOM_BYTES: u64 = 256 << 20;
/// How much is written between two looks at the room.
const STRIDE_BYTES: u64 = 16 << 20;

/// Until when, and how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Writing ends then, with [`io::ErrorKind::TimedOut`].
    pub(crate) deadline: Instant,
}

/// A file that is written within limits.
pub(super) struct Sink {
    file: File,
    limits: Limits,
    unseen_bytes: u64,
}

impl Sink {
    /// Writes to a file from where it is.
    pub(super) fn new(file: File, limits: Limits) -> Self {
        Self { file, limits, unseen_bytes: STRIDE_BYTES }
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }

    fn look(&self) -> io::Result<()> {
        let found = rustix::fs::fstatvfs(&self.file)?;
        match found.f_bavail.saturating_mul(found.f_frsize) < ROOM_BYTES {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if Instant::now() >= self.limits.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if self.unseen_bytes >= STRIDE_BYTES {
            self.look()?;
            self.unseen_bytes = 0;
        }
        let written = self.file.write(bytes)?;
        self.unseen_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_is_written_after_the_deadline() {
        let write = |deadline| {
            let mut sink = Sink::new(tempfile::tempfile().unwrap(), Limits { deadline });
            sink.write(b"x").map_err(|error| error.kind())
        };
        assert_eq!(write(Instant::now() + Duration::from_secs(60)), Ok(1));
        assert_eq!(write(Instant::now()), Err(io::ErrorKind::TimedOut));
    }
}
