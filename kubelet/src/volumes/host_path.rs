//! `hostPath`: a path of the host, checked against the type that the pod says it has.

use std::fs::{FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::{Desired, VolumeError};
use crate::container_config::MountedVolume;

/// `hostPath.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPathType {
    /// Anything; a directory is made where nothing is, as runtimes do upstream.
    Unset,
    /// A directory, made where it is missing.
    DirectoryOrCreate,
    /// A directory.
    Directory,
    /// A file, made where it is missing.
    FileOrCreate,
    /// A file.
    File,
    /// A UNIX socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl HostPathType {
    /// Reads the field.
    pub fn parse(text: Option<&str>) -> Result<Self, VolumeError> {
        Ok(match text.unwrap_or_default() {
            "" => Self::Unset,
            "DirectoryOrCreate" => Self::DirectoryOrCreate,
            "Directory" => Self::Directory,
            "FileOrCreate" => Self::FileOrCreate,
            "File" => Self::File,
            "Socket" => Self::Socket,
            "CharDevice" => Self::CharDevice,
            "BlockDevice" => Self::BlockDevice,
            other => {
                let text = format!("{other} is an invalid volume type");
                return Err(VolumeError::Source(text));
            }
        })
    }

    fn accepts(self, kind: FileType) -> bool {
        match self {
            Self::Unset => true,
            Self::DirectoryOrCreate | Self::Directory => kind.is_dir(),
            Self::FileOrCreate | Self::File => kind.is_file(),
            Self::Socket => kind.is_socket(),
            Self::CharDevice => kind.is_char_device(),
            Self::BlockDevice => kind.is_block_device(),
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Unset => "a path",
            Self::DirectoryOrCreate | Self::Directory => "a directory",
            Self::FileOrCreate | Self::File => "a file",
            Self::Socket => "a socket file",
            Self::CharDevice => "a character device",
            Self::BlockDevice => "a block device",
        }
    }
}

/// Checks a host path and makes it where its type says so.
pub(super) fn set_up(desired: &Desired) -> Result<MountedVolume, VolumeError> {
    let Desired::HostPath { path, kind, read_only } = desired else {
        return Err(VolumeError::Unsupported);
    };
    check(path, *kind)?;
    Ok(MountedVolume::path(path.clone(), *read_only))
}

fn check(path: &Path, kind: HostPathType) -> Result<(), VolumeError> {
    match std::fs::metadata(path) {
        Ok(metadata) if kind.accepts(metadata.file_type()) => Ok(()),
        Ok(_) => Err(mismatch(path, kind)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path, kind),
        Err(_) if kind != HostPathType::Unset => Err(mismatch(path, kind)),
        Err(error) => Err(VolumeError::host("look at", path)(error)),
    }
}

fn mismatch(path: &Path, kind: HostPathType) -> VolumeError {
    VolumeError::Source(format!(
        "hostPath type check failed: {} is not {}",
        path.display(),
        kind.noun()
    ))
}

fn make(path: &Path, kind: HostPathType) -> Result<(), VolumeError> {
    match kind {
        HostPathType::Unset | HostPathType::DirectoryOrCreate => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(VolumeError::host("make", path)),
        HostPathType::FileOrCreate => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map(drop)
            .map_err(VolumeError::host("make", path)),
        _ => Err(mismatch(path, kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_with_upstreams_texts() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (path, kind, accepted) in [
            (at(""), "Directory", true),
            (at("file"), "Directory", false),
            (at("file"), "DirectoryOrCreate", false),
            (at("file"), "File", true),
            (at("none"), "File", false),
            (at("none"), "Directory", false),
            (at("socket"), "Socket", true),
            (at("file"), "Socket", false),
            ("/dev/null".into(), "CharDevice", true),
            ("/dev/null".into(), "BlockDevice", false),
            (at("socket"), "", true),
            (at("new/deep"), "", true),
            (at("other/deep"), "DirectoryOrCreate", true),
            (at("made"), "FileOrCreate", true),
            (at("made"), "File", true),
        ] {
            let kind = HostPathType::parse(Some(kind)).unwrap();
            let outcome = check(&path, kind);
            assert_eq!(outcome.is_ok(), accepted, "{path:?} {kind:?}");
            if let Err(error) = outcome {
                let expected = format!(
                    "hostPath type check failed: {} is not {}",
                    path.display(),
                    kind.noun()
                );
                assert_eq!(error.to_string(), expected);
            }
        }
        assert!(at("new/deep").is_dir() && at("made").is_file());
        assert!(HostPathType::parse(Some("Pipe")).is_err());
    }
}
