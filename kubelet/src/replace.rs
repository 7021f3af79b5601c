//! Files that are replaced whole: who reads one finds what was in it before or what is in it now.
//!
//! What is new is written beside it under a name that begins with a dot, and renamed. A file has one
//! writer at a time; what one that was killed has left is overwritten by the next.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What the content of a file has to outlast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// The process: nothing is synced, so that nobody waits for a disk.
    Process,
    /// The process, and after a power cut the file is still a whole one: the old or the new.
    Whole,
    /// A power cut: once this has returned it is the new one.
    PowerCut,
}

/// Replaces what is in the file at `path`, which gets the permissions `mode`. Blocks.
///
/// # Errors
/// When it cannot be written. The old content stays, unless the last sync alone failed.
pub fn replace(path: &Path, content: &[u8], mode: u32, lasting: Lasting) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let temporary = directory.join(format!(".{}.new", name.to_string_lossy()));
    let _ = fs::remove_file(&temporary);
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written = file.write_all(content).and_then(|()| match lasting {
        Lasting::Process => Ok(()),
        Lasting::Whole | Lasting::PowerCut => file.sync_all(),
    });
    written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        // A full disk has no room for half a file.
        let _ = fs::remove_file(&temporary);
    })?;
    match lasting {
        Lasting::Process | Lasting::Whole => Ok(()),
        Lasting::PowerCut => File::open(directory)?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_new_content_takes_the_place_of_the_old_with_its_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file.json");
        for (content, mode, lasting) in [
            ("first", 0o644, Lasting::PowerCut),
            ("second, longer", 0o600, Lasting::Whole),
            ("third", 0o600, Lasting::Process),
        ] {
            // A writer that was killed half-way left this, for all to read.
            fs::write(directory.path().join(".file.json.new"), "half of something longer").unwrap();
            replace(&path, content.as_bytes(), mode, lasting).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_failure_leaves_the_old_content_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"new", 0o600, Lasting::PowerCut).is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
