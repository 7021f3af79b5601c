//! Compresses one rotated file in a process of its own, at the lowest priority.
//!
//! The compressed file appears whole under its name before the plain one goes; whoever lists both in
//! between reads the plain one. Its comment says which file it was (`inode=<number>`), so that a
//! follower knows where it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use flate2::{Compression, GzBuilder};

use super::rotation;
use crate::sys::{self, CloneFlags, Cloned};

/// Starts compressing. The process ends by itself, failed or not: a file that cannot be compressed
/// stays as it is.
pub(super) fn start(rotated: &Path) -> io::Result<OwnedFd> {
    match sys::clone3(&CloneFlags { namespaces: 0, cgroup: None })? {
        Cloned::Parent { pidfd, .. } => Ok(pidfd),
        Cloned::Child => {
            // The writer's socket must not outlive the writer.
            if sys::close_all_from(3, &[]).is_err() {
                sys::exit_now(1);
            }
            // Neither is worth failing for.
            let _ = rustix::process::nice(19);
            let _ = rustix::thread::set_name(c"berth-gzip");
            sys::exit_now(i32::from(compress(rotated).is_err()))
        }
    }
}

/// Replaces a file by its compressed form.
fn compress(rotated: &Path) -> io::Result<()> {
    let (done, unfinished) = rotation::compressed(rotated);
    let result = write(rotated, &unfinished).and_then(|()| std::fs::rename(&unfinished, &done));
    match result {
        Ok(()) => std::fs::remove_file(rotated),
        Err(error) => {
            // What is left of it is pruned with its rotation.
            let _ = std::fs::remove_file(&unfinished);
            Err(error)
        }
    }
}

fn write(rotated: &Path, target: &Path) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let mut plain = OpenOptions::new().read(true).custom_flags(flags).open(rotated)?;
    let metadata = plain.metadata()?;
    let mut options = OpenOptions::new();
    // A former attempt may have been ended half way.
    let options = options.write(true).create(true).truncate(true).mode(0o640).custom_flags(flags);
    let target: File = options.open(target)?;
    let mut encoder = GzBuilder::new()
        .comment(format!("inode={}", metadata.ino()))
        .write(target, Compression::default());
    io::copy(&mut plain, &mut encoder)?;
    encoder.finish().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_compressed_file_replaces_the_plain_one_and_knows_what_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let rotated = directory.path().join("0.log.20250101-000001");
        let text = "2025-01-01T00:00:00Z stdout F x\n".repeat(5000);
        std::fs::write(&rotated, &text).unwrap();
        let inode = rotated.metadata().unwrap().ino();
        // What an interrupted attempt leaves is no hindrance.
        std::fs::write(directory.path().join("0.log.20250101-000001.gz.tmp"), "torn").unwrap();
        compress(&rotated).unwrap();
        let names: Vec<_> =
            directory.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["0.log.20250101-000001.gz"]);
        let file = File::open(directory.path().join(&names[0])).unwrap();
        let mut decoder = flate2::read::GzDecoder::new(file);
        let mut read = String::new();
        decoder.read_to_string(&mut read).unwrap();
        assert_eq!(read, text);
        let comment = decoder.header().unwrap().comment().unwrap();
        assert_eq!(comment, format!("inode={inode}").as_bytes());
        assert!(compress(&rotated).is_err());
    }
}
