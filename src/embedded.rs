//! The `berth-oci` executable that this one carries.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use berth_runtime::executable::{Error, Executable};

/// `berth-oci`, as `build.rs` built it.
static BERTH_OCI: &[u8] = include_bytes!(env!("BERTH_OCI_PATH"));

/// A sealed copy in memory, from which shims and unpackers are started.
pub(crate) fn executable() -> Result<Executable, Error> {
    Executable::from_bytes(BERTH_OCI)
}

/// Writes it to `file` as an executable of its own: whole or not at all.
pub(crate) fn install(file: &Path) -> Result<()> {
    let directory = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        let mut draft = tempfile::NamedTempFile::new_in(directory)?;
        draft.write_all(BERTH_OCI)?;
        draft.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
        draft.as_file().sync_all()?;
        draft.persist(file)?;
        Ok(())
    };
    write().with_context(|| format!("writing {}", file.display()))
}
