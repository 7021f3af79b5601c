//! The `berth-oci` executable, held in one sealed memory file from which every shim and unpacker is
//! started, so that nothing a container reaches can change what the host runs.
//!
//! Kernel: `memfd_create` with sealing (3.17).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::os::unix::process::CommandExt;

/// A sealed copy of `berth-oci`.
#[derive(Debug)]
pub struct Executable {
    file: OwnedFd,
}

/// The executable could not be copied into a sealed memory file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the executable {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refused the memory file.
    #[error("cannot make a sealed memory file of the executable")]
    Seal(#[source] io::Error),
}

impl Executable {
    /// Copies the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read, or the kernel has no sealed memory files.
    pub fn from_path(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        Self::seal(&mut File::open(path).map_err(read)?)
    }

    /// Copies an executable that the caller carries within itself.
    ///
    /// # Errors
    /// When the kernel has no sealed memory files.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Self::seal(&mut io::Cursor::new(bytes))
    }

    fn seal(source: &mut impl io::Read) -> Result<Self, Error> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("berth-oci", flags).map_err(|e| Error::Seal(e.into()))?;
        let mut file = File::from(file);
        io::copy(source, &mut file).map_err(Error::Seal)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals).map_err(|e| Error::Seal(e.into()))?;
        Ok(Self { file: file.into() })
    }

    /// A command that runs the executable under its own name, with an empty environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        command.arg0("berth-oci").env_clear();
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn a_sealed_executable_runs_and_cannot_be_written() {
        let executable = Executable::from_path(Path::new("/bin/true")).unwrap();
        assert!(executable.command().status().unwrap().success());
        let copy = executable.file.as_fd().try_clone_to_owned().unwrap();
        assert!(File::from(copy).write_all(b"x").is_err());
    }

    #[test]
    fn a_missing_executable_is_named_in_the_error() {
        let error = Executable::from_path(Path::new("/nonexistent/berth-oci")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/berth-oci"));
    }
}
