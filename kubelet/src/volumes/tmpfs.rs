//! Memory-backed volumes: mounting and unmounting tmpfs and hugetlbfs.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

/// Of tmpfs and hugetlbfs.
const OURS: [i128; 2] = [0x0102_1994, 0x9584_58f6];

/// What a memory-backed volume is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Options {
    /// The size of its pages, where they are huge ones.
    pub(super) page_bytes: Option<u64>,
    /// How much it may hold; the kernel's default (half the memory) where absent.
    pub(super) size_bytes: Option<u64>,
    /// What its files may not do.
    pub(super) flags: MountAttrFlags,
}

/// Mounts memory on an open directory. Its pages are never swapped where the kernel can promise that
/// (Linux 6.4; huge ones never are).
pub(super) fn mount(target: impl AsFd, options: Options) -> io::Result<()> {
    let kind = if options.page_bytes.is_some() { "hugetlbfs" } else { "tmpfs" };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mode = format!("{:04o}", super::directory::MODE);
    fsconfig_set_string(&context, "mode", mode)?;
    if let Some(size) = options.size_bytes {
        fsconfig_set_string(&context, "size", size.to_string())?;
    }
    match options.page_bytes {
        Some(bytes) => fsconfig_set_string(&context, "pagesize", bytes.to_string())?,
        None => match fsconfig_set_flag(&context, "noswap") {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        },
    }
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, options.flags)?;
    let by_descriptor =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mounted, "", target, "", by_descriptor)?;
    Ok(())
}

/// Whether an open directory is the root of a mount.
pub(super) fn is_mount(directory: impl AsFd) -> io::Result<bool> {
    let status = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Unmounts all memory that is mounted on a volume's directory; anything else mounted there is an
/// error. The directory's parents are the kubelet's alone, so that its path cannot be exchanged.
pub(super) fn unmount_all(path: &Path) -> io::Result<()> {
    loop {
        let directory = match super::directory::open_path(path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if !is_mount(&directory)? {
            return Ok(());
        }
        let magic = rustix::fs::fstatfs(&directory)?.f_type;
        if !OURS.contains(&i128::from(magic)) {
            return Err(io::Error::other("a file system that is not ours is mounted there"));
        }
        drop(directory);
        unmount(path, UnmountFlags::NOFOLLOW)?;
    }
}
