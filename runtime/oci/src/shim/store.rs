//! Container records on disk: written whole under a temporary name, synced, renamed.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::execution::Once;
use super::record_directory;
use crate::protocol::{Answer, ContainerRecord, MAX_KEPT_RESULTS};

/// Writes a record.
pub(super) fn write(sandbox: &Path, record: &ContainerRecord) -> io::Result<()> {
    let directory = record_directory(sandbox, &record.id);
    std::fs::create_dir_all(&directory)?;
    let temporary = directory.join("state.json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join("state.json"))
}

fn results(sandbox: &Path, container: &str) -> PathBuf {
    record_directory(sandbox, container).join("executions")
}

/// Keeps the result of a named execution, and of those before it so many as are allowed.
pub(super) fn keep_result(sandbox: &Path, once: &Once, answer: &Answer) -> io::Result<()> {
    let directory = results(sandbox, &once.container);
    std::fs::create_dir_all(&directory)?;
    let mut kept: Vec<_> = std::fs::read_dir(&directory)?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    kept.sort();
    let excess = (kept.len() + 1).saturating_sub(MAX_KEPT_RESULTS);
    for (_, old) in kept.into_iter().take(excess) {
        std::fs::remove_file(old)?;
    }
    // Beside the directory: a name of an execution may be any.
    let temporary = record_directory(sandbox, &once.container).join("execution.new");
    std::fs::write(&temporary, serde_json::to_vec(answer)?)?;
    std::fs::rename(&temporary, directory.join(&once.name))
}

/// The kept result of a named execution.
pub(super) fn kept_result(sandbox: &Path, once: &Once) -> Option<Answer> {
    let bytes = std::fs::read(results(sandbox, &once.container).join(&once.name)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Forgets a record. Forgetting what is gone succeeds.
pub(super) fn remove(sandbox: &Path, id: &str) -> io::Result<()> {
    match std::fs::remove_dir_all(record_directory(sandbox, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether an identifier is a plain file name.
pub(super) fn is_valid_id(id: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    !id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_that_are_paths_are_refused() {
        for id in ["", ".", "..", "../x", "a/b", ".hidden", "a b", "ä"] {
            assert!(!is_valid_id(id), "{id:?}");
        }
        assert!(is_valid_id("0123abc_D-e.f"));
    }
}
