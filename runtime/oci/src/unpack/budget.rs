//! What a layer may cost.

use super::Error;

/// Limits of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Uncompressed bytes of the stream, and bytes written to files.
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// Components of a path.
    pub(super) depth: u64,
    /// Bytes of a path.
    pub(super) path_length: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 4_000_000, depth: 256, path_length: 4096 }
    }
}

/// What has been spent.
#[derive(Debug)]
pub(super) struct Account {
    budget: Budget,
    pub(super) entries: u64,
    written: u64,
}

impl Account {
    pub(super) fn new(budget: Budget) -> Self {
        Self { budget, entries: 0, written: 0 }
    }

    /// One more entry, named so.
    pub(super) fn entry(&mut self, depth: usize, path_length: usize) -> Result<(), Error> {
        self.entries += 1;
        check("layer entries", self.entries, self.budget.entries)?;
        check("path depth", depth as u64, self.budget.depth)?;
        check("path length", path_length as u64, self.budget.path_length)
    }

    /// Bytes of file content: the holes of sparse files cost nothing in the stream, but count here.
    pub(super) fn content(&mut self, bytes: usize) -> Result<(), Error> {
        self.written = self.written.saturating_add(bytes as u64);
        check("unpacked size", self.written, self.budget.bytes)
    }
}

fn check(what: &'static str, spent: u64, limit: u64) -> Result<(), Error> {
    if spent > limit { Err(Error::Budget { what, limit }) } else { Ok(()) }
}
