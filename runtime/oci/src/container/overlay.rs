//! An overlay of image layers, attached nowhere, of up to the kernel's own limit of 500.
//!
//! Linux 6.8 takes lower directories one by one (`lowerdir+`). Before, fsconfig(2) takes them only
//! as one string of at most 255 bytes, so there mount(2) with its page of options is used, and the
//! options name descriptors: with `/proc/<pid>/fd` as the working directory a layer is a few digits,
//! and no character of a path needs escaping.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::{Doing, Result, rootfs};
use crate::sys;

const PATH_DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// What is attached over `/`: a lookup of `/` itself passes below it.
const OVER_ROOT: &str = "/..";
const OVERLAYFS_MAGIC: u64 = 0x794c_7630;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The directories of an overlay.
pub(super) struct Layers<'a> {
    /// Topmost first.
    pub(super) lower: &'a [PathBuf],
    pub(super) upper: &'a Path,
    pub(super) work: &'a Path,
    /// The SELinux context that all its files have.
    pub(super) label: Option<&'a str>,
}

impl Layers<'_> {
    fn make_operation(&self) -> String {
        format!("make an overlay of {} layers below {}", self.lower.len(), self.upper.display())
    }
}

/// Makes an overlay. `procfs` shows the caller as `self`; bind sources must have been opened. With a
/// user namespace in `ids` an owner in a lower layer is the id that it stands for outside; the writable
/// layer holds such ids as they are. Linux 5.19.
pub(super) fn make(
    layers: &Layers<'_>,
    ids: Option<BorrowedFd<'_>>,
    procfs: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    if let Some(ids) = ids {
        return make_mapped(layers, ids, procfs);
    }
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .doing(|| "open an overlay")?;
    if collects_options(context.as_fd()) {
        return make_by_descriptors(layers, procfs);
    }
    for (index, path) in layers.lower.iter().enumerate() {
        match rustix::mount::fsconfig_set_string(&context, "lowerdir+", path.as_path()) {
            Err(Errno::INVAL) if index == 0 => return make_by_descriptors(layers, procfs),
            result => result.doing(|| format!("add overlay layer {}", path.display()))?,
        }
    }
    for (name, path) in [("upperdir", layers.upper), ("workdir", layers.work)] {
        // Unlike `lowerdir+` these two are unescaped.
        rustix::mount::fsconfig_set_string(&context, name, escape(path))
            .doing(|| format!("set overlay {name} {}", path.display()))?;
    }
    rustix::mount::fsconfig_set_string(&context, "source", "overlay")
        .doing(|| "name an overlay")?;
    if let Some(label) = layers.label {
        rustix::mount::fsconfig_set_string(&context, "context", label)
            .doing(|| format!("set overlay context {label:?}"))?;
    }
    rustix::mount::fsconfig_create(&context).doing(|| layers.make_operation())?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .doing(|| "mount the overlay")
}

/// Whether options are only collected until the overlay is made, as before Linux 6.5: then one that
/// does not exist is accepted. Asking for `lowerdir+` itself would fail late, with a kernel warning.
fn collects_options(context: BorrowedFd<'_>) -> bool {
    rustix::mount::fsconfig_set_flag(context, "no-such-option").is_ok()
}

/// Mapped layers are mounts, and an overlay takes only what is attached in the caller's own mount
/// namespace: they are on a shelf over `/` until it has them.
fn make_mapped(
    layers: &Layers<'_>,
    ids: BorrowedFd<'_>,
    procfs: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let host = rootfs::hide_root()?;
    let shelf = shelf(&host).doing(|| "make a place for mapped layers")?;
    let lower = layers
        .lower
        .iter()
        .enumerate()
        .map(|(index, path)| {
            let place = index.to_string();
            mapped_layer(path, ids, (&shelf, &place))
                .doing(|| format!("map the ids of overlay layer {}", path.display()))
        })
        .collect::<Result<Vec<_>>>()?;
    let made = mount_descriptors(layers, lower, procfs);
    let top = rustix::fs::open(OVER_ROOT, PATH_DIRECTORY, Mode::empty());
    let is_shelf = top.and_then(|top| Ok(rustix::fs::fstatfs(&top)?.f_type as u64 == TMPFS_MAGIC));
    match is_shelf {
        Ok(true) => rustix::mount::unmount(OVER_ROOT, UnmountFlags::DETACH),
        Ok(false) => Err(Errno::STALE),
        Err(error) => Err(error),
    }
    .doing(|| "detach the mapped layers")?;
    made
}

/// A directory in memory over `/`.
fn shelf(host: &OwnedFd) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "mode", "0700")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let shelf = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&shelf, "", host, "", flags)?;
    Ok(shelf)
}

/// A layer with its ids mapped, put on the shelf.
fn mapped_layer(
    path: &Path,
    ids: BorrowedFd<'_>,
    (shelf, place): (&OwnedFd, &str),
) -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, path, flags)?;
    sys::map_mount_ids(tree.as_fd(), ids, false)?;
    rustix::fs::mkdirat(shelf, place, Mode::RWXU)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", shelf, place, flags)?;
    Ok(tree)
}

/// The same for Linux before 6.8: mounted over the child's `/` for a moment, then taken off again.
fn make_by_descriptors(layers: &Layers<'_>, procfs: BorrowedFd<'_>) -> Result<OwnedFd> {
    let open = |path: &Path| {
        rustix::fs::open(path, PATH_DIRECTORY, Mode::empty())
            .doing(|| format!("open overlay layer {}", path.display()))
    };
    let lower = layers.lower.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
    mount_descriptors(layers, lower, procfs)
}

/// Mounts an overlay of lower layers that are open, over `/`, and takes it off again.
fn mount_descriptors(
    layers: &Layers<'_>,
    lower: Vec<OwnedFd>,
    procfs: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let open = |path: &Path| {
        rustix::fs::open(path, PATH_DIRECTORY, Mode::empty())
            .doing(|| format!("open overlay layer {}", path.display()))
    };
    let (upper, work) = (open(layers.upper)?, open(layers.work)?);
    let options = options(&numbers(&lower), [upper.as_raw_fd(), work.as_raw_fd()], layers.label);
    let host = rootfs::hide_root()?;
    let descriptors = rustix::fs::openat(procfs, "self/fd", PATH_DIRECTORY, Mode::empty())
        .doing(|| "open the directory of descriptors")?;
    rustix::process::fchdir(&descriptors).doing(|| "enter the directory of descriptors")?;
    let mounted =
        rustix::mount::mount("overlay", "/", "overlay", MountFlags::empty(), options.as_c_str());
    rustix::process::fchdir(&host).doing(|| "leave the directory of descriptors")?;
    mounted.doing(|| layers.make_operation())?;
    take_off_root().doing(|| "detach the overlay")
}

/// A detached copy of the overlay over `/`, which is unmounted.
fn take_off_root() -> Result<OwnedFd, Errno> {
    let top = rustix::fs::open(OVER_ROOT, PATH_DIRECTORY, Mode::empty())?;
    if rustix::fs::fstatfs(&top)?.f_type as u64 != OVERLAYFS_MAGIC {
        return Err(Errno::STALE);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(&top, "", flags)?;
    rustix::mount::unmount(OVER_ROOT, UnmountFlags::DETACH)?;
    Ok(copy)
}

fn numbers(descriptors: &[OwnedFd]) -> Vec<i32> {
    descriptors.iter().map(|descriptor| descriptor.as_fd().as_raw_fd()).collect()
}

fn escape(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes().iter();
    bytes.flat_map(|byte| std::iter::repeat_n(*byte, 1 + usize::from(*byte == b'\\'))).collect()
}

/// The options of mount(2): names relative to the directory of descriptors.
fn options(lower: &[i32], [upper, work]: [i32; 2], label: Option<&str>) -> CString {
    let lower: Vec<String> = lower.iter().map(i32::to_string).collect();
    let mut text = format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
    if let Some(label) = label {
        // Quoted, for the comma between its categories.
        text.push_str(&format!(",context=\"{label}\""));
    }
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_layers_as_the_kernel_stacks_fit_into_its_page_of_options() {
        let lower: Vec<i32> = (1000..1500).collect();
        let label = "system_u:object_r:container_file_t:s0:c1022,c1023";
        assert!(options(&lower, [1500, 1501], Some(label)).as_bytes_with_nul().len() < 4096);
        let plain = options(&[7, 8], [9, 10], None);
        assert_eq!(plain.to_str(), Ok("lowerdir=7:8,upperdir=9,workdir=10"));
        let labelled = options(&[7], [9, 10], Some("u:r:t:s0:c1,c2"));
        let expected = "lowerdir=7,upperdir=9,workdir=10,context=\"u:r:t:s0:c1,c2\"";
        assert_eq!(labelled.to_str(), Ok(expected));
    }
}
