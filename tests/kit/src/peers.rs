//! Finds the programs that `tests/setup/peers.sh` provides.

use std::path::{Path, PathBuf};

/// A current kubectl.
///
/// # Panics
/// It is not there.
pub fn kubectl() -> PathBuf {
    peer("kubectl")
}

/// A program of `.cache/peers/bin`.
///
/// # Panics
/// It is not there; the message says how to get it.
pub fn peer(name: &str) -> PathBuf {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("repository root");
    let path = repo.join(".cache/peers/bin").join(name);
    assert!(path.exists(), "{} is missing: run tests/setup/peers.sh", path.display());
    path
}
