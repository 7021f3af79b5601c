//! Finding and executing the command, with the exit codes and messages that runc gives.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, OFlags};
use rustix::io::Errno;

use super::{Error, Result};

const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn failed(exit_code: i32, message: String) -> Error {
    Error::Command { exit_code, message }
}

/// What a name finds: the message names the error as Go's runtimes print it.
fn text(error: Errno) -> &'static str {
    match error {
        Errno::NOENT => "no such file or directory",
        Errno::ACCESS => "permission denied",
        Errno::NOTDIR => "not a directory",
        Errno::ISDIR => "is a directory",
        Errno::LOOP => "too many levels of symbolic links",
        Errno::NOEXEC => "exec format error",
        Errno::PERM => "operation not permitted",
        Errno::TOOBIG => "argument list too long",
        Errno::TXTBSY => "text file busy",
        Errno::NOMEM => "cannot allocate memory",
        _ => "input/output error",
    }
}

fn executable(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => return Err(Errno::ISDIR),
        FileType::RegularFile => {}
        _ => return Err(Errno::ACCESS),
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// Resolves a command against the `PATH` of its own environment.
pub(super) fn find(command: &str, environment: &[String]) -> Result<PathBuf> {
    if command.contains('/') {
        return match executable(Path::new(command)) {
            Ok(()) => Ok(PathBuf::from(command)),
            Err(error @ (Errno::NOENT | Errno::NOTDIR)) => Err(failed(
                NOT_FOUND,
                format!("exec: {command:?}: stat {command}: {}", text(error)),
            )),
            Err(error) => {
                Err(failed(NOT_EXECUTABLE, format!("exec: {command:?}: {}", text(error))))
            }
        };
    }
    let path = environment.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    let mut denied = false;
    if !command.is_empty() {
        for directory in path.unwrap_or(DEFAULT_PATH).split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            let candidate = Path::new(directory).join(command);
            match executable(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(Errno::ACCESS) => denied = true,
                Err(_) => {}
            }
        }
    }
    Err(match denied {
        true => failed(NOT_EXECUTABLE, format!("exec: {command:?}: permission denied")),
        false => {
            failed(NOT_FOUND, format!("exec: {command:?}: executable file not found in $PATH"))
        }
    })
}

/// Replaces this process by the command.
pub(super) fn execute(path: &Path, arguments: &[CString], environment: &[CString]) -> Error {
    let Ok(c_path) = CString::new(path.as_os_str().as_bytes()) else {
        return failed(NOT_FOUND, "exec: the path holds a NUL byte".to_owned());
    };
    let error = crate::sys::execute(&c_path, arguments, environment);
    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let exit_code = match errno {
        // The interpreter of a script or the loader of a binary.
        Errno::NOENT => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    failed(exit_code, format!("exec {}: {}", path.display(), text(errno)))
}

/// C strings of what the plan has already cleared of NUL bytes.
pub(super) fn c_strings(texts: &[String]) -> Vec<CString> {
    texts.iter().filter_map(|text| CString::new(text.as_str()).ok()).collect()
}

/// Opens a directory of the container to become the working directory.
pub(super) const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
