//! The `berth-oci` executable that this one carries.

use berth_runtime::executable::{Error, Executable};

/// `berth-oci`, as `build.rs` built it.
static BERTH_OCI: &[u8] = include_bytes!(env!("BERTH_OCI_PATH"));

/// A sealed copy in memory, from which shims and unpackers are started.
pub(crate) fn executable() -> Result<Executable, Error> {
    Executable::from_bytes(BERTH_OCI)
}
