//! What the tests of this crate share: the real `berth-oci`, images made from busybox, a registry.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod image;
pub mod node;
pub mod registry;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use berth_runtime::executable::Executable;

/// `berth-oci`, built once a test process next to the test itself.
pub fn oci() -> Arc<Executable> {
    static BUILT: OnceLock<Arc<Executable>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let status = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "-p", "berth-oci"])
                .arg("--target-dir")
                .arg(target_dir())
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .expect("cargo runs");
            assert!(status.success(), "berth-oci does not build");
            let path = target_dir().join("debug/berth-oci");
            Arc::new(Executable::from_path(&path).expect("berth-oci is there"))
        })
        .clone()
}

/// `<target>` of `<target>/debug/deps/<test>`.
fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    test.ancestors().nth(3).expect("a target directory").to_owned()
}

/// A directory of the test's own with a short path: sockets live below it.
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("brt").tempdir_in("/tmp").unwrap()
}

/// The names in a directory; none where it is missing.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(listing) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> =
        listing.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
