//! Builds the static `berth-oci` executable and hands its path to `src/embedded.rs`.
//!
//! `berth` carries `berth-oci` inside itself, so one file installs a node. It is built here, in a
//! target directory of its own, because it needs other flags than the rest: a static executable,
//! optimized for size. `BERTH_OCI` names a ready-made one instead (packagers, reproducible builds).

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=BERTH_OCI");
    println!("cargo::rerun-if-changed=runtime/oci");
    println!("cargo::rerun-if-changed=Cargo.lock");
    let executable = match env::var_os("BERTH_OCI") {
        Some(path) => PathBuf::from(path),
        None => build_oci()?,
    };
    if !executable.is_file() {
        return Err(format!("{} is not a file", executable.display()).into());
    }
    println!("cargo::rustc-env=BERTH_OCI_PATH={}", executable.display());
    Ok(())
}

fn build_oci() -> Result<PathBuf, Box<dyn Error>> {
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let target = env::var("TARGET")?;
    let target_dir = outer_target_dir()?.join("oci");
    let status = Command::new(env::var("CARGO")?)
        .current_dir(&manifest_dir)
        .args(["build", "--locked", "--package", "berth-oci", "--bin", "berth-oci"])
        .args(["--profile", "oci", "--target", &target, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()?;
    if !status.success() {
        return Err(format!("building berth-oci ended with {status}").into());
    }
    Ok(target_dir.join(target).join("oci/berth-oci"))
}

/// `OUT_DIR` is `<target>/<profile>/build/<package>-<hash>/out`.
fn outer_target_dir() -> Result<PathBuf, Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    out.ancestors()
        .nth(4)
        .map(Path::to_owned)
        .ok_or_else(|| format!("{} is not below a target directory", out.display()).into())
}
