//! Names of entries: cleaned, judged, and told apart as whiteouts. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::Error;

const PREFIX: &[u8] = b".wh.";
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry's name says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The root of the layer.
    Root,
    /// A path below it.
    Path(PathBuf),
    /// The path is gone from the layers below.
    Whiteout(PathBuf),
    /// All of the layers below is gone from this directory.
    Opaque(PathBuf),
    /// Bookkeeping of aufs.
    Ignored,
}

fn invalid(name: &[u8], reason: &'static str) -> Error {
    Error::Invalid { path: String::from_utf8_lossy(name).into_owned(), reason }
}

/// A relative path without `.`; `..` and NUL are refused.
fn clean(name: &[u8]) -> Result<PathBuf, Error> {
    if name.contains(&0) {
        return Err(invalid(name, "the name holds a NUL byte"));
    }
    let mut cleaned = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => cleaned.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(invalid(name, "the name leads upwards"));
            }
        }
    }
    Ok(cleaned)
}

/// Judges a name.
pub(super) fn target(name: &[u8]) -> Result<Target, Error> {
    let path = clean(name)?;
    let Some(last) = path.file_name() else { return Ok(Target::Root) };
    let parent = path.parent().unwrap_or(Path::new(""));
    let directories_are_whiteouts =
        parent.components().any(|part| part.as_os_str().as_bytes().starts_with(PREFIX));
    if directories_are_whiteouts && !parent.as_os_str().as_bytes().starts_with(META_PREFIX) {
        return Err(invalid(name, "a directory bears a whiteout's name"));
    }
    let last = last.as_bytes();
    if last == OPAQUE {
        return Ok(Target::Opaque(parent.to_owned()));
    }
    if last.starts_with(META_PREFIX) || directories_are_whiteouts {
        return Ok(Target::Ignored);
    }
    match last.strip_prefix(PREFIX) {
        None => Ok(Target::Path(path)),
        Some(b"" | b"." | b"..") => Err(invalid(name, "the whiteout names no entry")),
        Some(hidden) => Ok(Target::Whiteout(parent.join(OsStr::from_bytes(hidden)))),
    }
}

/// Whether a layer may carry an extended attribute: what overlayfs and the host's security modules
/// decide by is never an image's to set.
pub(super) fn keeps_attribute(name: &str) -> bool {
    name == "security.capability"
        || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Target {
        target(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_are_taken_below_the_root() {
        assert_eq!(path("./a//b/./c"), Target::Path(PathBuf::from("a/b/c")));
        assert_eq!(path("/etc/passwd"), Target::Path(PathBuf::from("etc/passwd")));
        assert_eq!(path("./"), Target::Root);
    }

    #[test]
    fn whiteouts_are_told_apart() {
        assert_eq!(path("a/.wh.b"), Target::Whiteout(PathBuf::from("a/b")));
        assert_eq!(path(".wh.b"), Target::Whiteout(PathBuf::from("b")));
        assert_eq!(path("a/.wh..wh..opq"), Target::Opaque(PathBuf::from("a")));
        assert_eq!(path(".wh..wh.plnk/1.2"), Target::Ignored);
        assert_eq!(path(".wh..wh.aufs"), Target::Ignored);
        assert_eq!(path("a/.wh"), Target::Path(PathBuf::from("a/.wh")));
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../x", "a/../../x", "a/..", ".wh.", ".wh..", ".wh...", "a/.wh...", ".wh.x/y"]
        {
            assert!(target(name.as_bytes()).is_err(), "{name}");
        }
        assert!(target(b"a\0b").is_err());
    }

    #[test]
    fn only_harmless_attributes_are_kept() {
        for name in ["user.mime", "security.capability"] {
            assert!(keeps_attribute(name), "{name}");
        }
        for name in
            ["trusted.overlay.opaque", "user.overlay.opaque", "security.selinux", "system.x"]
        {
            assert!(!keeps_attribute(name), "{name}");
        }
    }
}
