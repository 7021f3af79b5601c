//! Settles what the mounts of a container stand for on the host, and undoes mounts below a directory.
//!
//! A `subPath` may have been replaced by the pod while it is looked up. It is resolved beneath its
//! volume with `openat2`, so no link leads out, and what was found is bound by its descriptor to a
//! place of the engine's own, so nothing can be swapped afterwards (CVE-2017-1002101,
//! CVE-2021-25741). Kernel: 5.6 for `openat2`, 5.2 for `open_tree`. All functions block.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use berth_oci::protocol::UserIds;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use super::image_volumes::{self, ImageLayers};
use super::record::ContainerDir;
use super::selinux;
use super::spec::{Content, PreparedMount};
use crate::disk;
use crate::interface::{Mount, Propagation};
use crate::mount_table;

/// Settles all mounts of a container.
///
/// # Errors
/// A sentence for the pod's owner.
pub(super) fn prepare(
    mounts: &[Mount],
    dir: &ContainerDir,
    images: &Images<'_>,
) -> Result<Vec<PreparedMount>, String> {
    let prepare = |(index, mount)| prepare_one(mount, &dir.volume(index), images);
    mounts.iter().enumerate().map(prepare).collect()
}

/// What volumes that are images are mounted from.
pub(super) struct Images<'a> {
    pub(super) layers: &'a ImageLayers,
    /// The pod's user namespace, if it has one.
    pub(super) users: Option<&'a fs::File>,
    /// The container's label for files, on a host that has SELinux.
    pub(super) label: Option<&'a str>,
}

fn prepare_one(
    mount: &Mount,
    own_place: &Path,
    images: &Images<'_>,
) -> Result<PreparedMount, String> {
    if let Some(image) = &mount.image {
        let wanted = (image, mount.sub_path.as_deref());
        image_volumes::mount(images, wanted, own_place)?;
        return Ok(PreparedMount {
            source: own_place.to_owned(),
            container_path: mount.container_path.clone(),
            content: Content::Image,
            read_only: true,
            recursive_read_only: false,
            propagation: Propagation::Private,
        });
    }
    let host_path = &mount.host_path;
    if !host_path.is_absolute() {
        return Err(format!("the host path {host_path:?} is not absolute"));
    }
    let failed =
        |error: io::Error| format!("failed to prepare the mount of {host_path:?}: {error}");
    if !host_path.exists() {
        // As containerd does for what the pod's owner may mount but nobody made.
        fs::create_dir_all(host_path).map_err(failed)?;
    }
    let source = match &mount.sub_path {
        Some(sub_path) if !sub_path.as_os_str().is_empty() => {
            bind_beneath(host_path, sub_path, own_place)?;
            own_place.to_owned()
        }
        _ => fs::canonicalize(host_path).map_err(failed)?,
    };
    check_propagation(&source, mount.propagation).map_err(failed)??;
    if let Some(label) = images.label.filter(|_| mount.relabel) {
        selinux::relabel(&source, label)
            .map_err(|error| format!("failed to label {source:?}: {error}"))?;
    }
    Ok(PreparedMount {
        source,
        container_path: mount.container_path.clone(),
        content: Content::Files,
        read_only: mount.read_only,
        recursive_read_only: mount.recursive_read_only,
        propagation: mount.propagation,
    })
}

/// Whether mounts can cross what a volume lies on as the container asks. As containerd has it: otherwise
/// what the container mounts, or is to see mounted, would be missing without a word.
fn check_propagation(source: &Path, wanted: Propagation) -> io::Result<Result<(), String>> {
    if wanted == Propagation::Private {
        return Ok(Ok(()));
    }
    // What the table does not show lies outside this root: nobody could see mounts of it.
    let Some(on) = mount_table::mount_of(source)? else { return Ok(Ok(())) };
    let lacks = match wanted {
        Propagation::Bidirectional if !on.is_shared => "a shared mount",
        Propagation::HostToContainer if !on.is_shared && !on.is_slave => "a shared or slave mount",
        _ => return Ok(Ok(())),
    };
    let place = on.place.display();
    Ok(Err(format!("path {source:?} is mounted on \"{place}\" but it is not {lacks}")))
}

fn bind_beneath(volume: &Path, sub_path: &Path, place: &Path) -> Result<(), String> {
    let failed = |error: io::Error| {
        format!("failed to prepare subPath {sub_path:?} of volume {volume:?}: {error}")
    };
    let found = open_beneath(volume, sub_path).map_err(|error| match error {
        Errno::XDEV | Errno::LOOP => {
            format!("subPath {sub_path:?} is not within the volume path {volume:?}")
        }
        other => failed(other.into()),
    })?;
    bind(&found, place).map_err(failed)
}

/// Binds what is beneath a directory to a place of ours; nothing is made in the directory.
pub(super) fn bind_existing(root: &Path, sub_path: &Path, place: &Path) -> io::Result<()> {
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    bind(&openat2(&root, sub_path, flags, Mode::empty(), resolve)?, place)
}

fn bind(found: &OwnedFd, place: &Path) -> io::Result<()> {
    let mode = rustix::fs::fstat(found)?.st_mode;
    match (rustix::fs::FileType::from_raw_mode(mode).is_dir(), place.parent()) {
        (true, _) => fs::create_dir_all(place)?,
        (false, Some(parent)) => fs::create_dir_all(parent).and_then(|()| fs::write(place, b""))?,
        (false, None) => return Err(io::ErrorKind::InvalidInput.into()),
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(found.as_fd(), "", flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(tree.as_fd(), "", CWD, place, flags)?)
}

/// Opens a path beneath a volume, making directories that are missing. No link leads out.
fn open_beneath(volume: &Path, sub_path: &Path) -> Result<OwnedFd, Errno> {
    let mut names = Vec::new();
    for component in sub_path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(Errno::XDEV);
            }
        }
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = open(volume, flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let wanted: PathBuf =
        std::iter::once(Path::new(".").as_os_str()).chain(names.iter().copied()).collect();
    let mut made = PathBuf::from(".");
    match openat2(&root, &wanted, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => {}
        outcome => return outcome,
    }
    let mut current = root.try_clone().map_err(|_| Errno::MFILE)?;
    for name in names {
        made.push(name);
        let next = openat2(&root, &made, flags, Mode::empty(), resolve);
        current = match next {
            Err(Errno::NOENT) => {
                match mkdirat(&current, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                openat2(&root, &made, flags, Mode::empty(), resolve)?
            }
            outcome => outcome?,
        };
    }
    Ok(current)
}

/// Mounts a tmpfs for `/dev/shm`, 64 MiB as Docker's.
pub(super) fn mount_shm(place: &Path, user_ids: Option<UserIds>) -> io::Result<()> {
    use rustix::mount::MountFlags;
    disk::make_private_dir(place)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let root = user_ids.map_or(0, |ids| ids.first);
    let options = format!("mode=1777,size=67108864,uid={root},gid={root}");
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("shm", place, "tmpfs", flags, Some(options.as_c_str()))
        .map_err(|error| disk::at(place, error.into()))
}

/// Takes away all mounts at and below a directory, the last one first.
pub(super) fn unmount_below(dir: &Path) -> io::Result<()> {
    let mut failure = None;
    for place in mount_table::places_below(dir)?.into_iter().rev() {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        match unmount(&place, flags) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => failure = Some(disk::at(&place, error.into())),
        }
    }
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_sub_path_is_found_or_made_beneath_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        open_beneath(dir.path(), Path::new("a/./b")).unwrap();
        assert!(dir.path().join("a/b").is_dir());
        symlink("a", dir.path().join("link")).unwrap();
        open_beneath(dir.path(), Path::new("link/b")).unwrap();
        open_beneath(dir.path(), Path::new("link/c")).unwrap();
        assert!(dir.path().join("a/c").is_dir());
        fs::write(dir.path().join("file"), b"x").unwrap();
        open_beneath(dir.path(), Path::new("file")).unwrap();
    }

    #[test]
    fn a_sub_path_does_not_leave_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        symlink("/etc", volume.join("absolute")).unwrap();
        symlink("../..", volume.join("climbing")).unwrap();
        for bad in ["..", "a/../../b", "/etc", "absolute/passwd", "climbing/etc", "absolute/new"] {
            let error = open_beneath(&volume, Path::new(bad)).unwrap_err();
            assert_eq!(error, Errno::XDEV, "{bad}");
        }
        assert!(!Path::new("/etc/new").exists());
    }

    /// CVE-2021-25741: the container exchanges a directory of the path for a link while it is looked up.
    #[test]
    fn a_directory_that_is_exchanged_for_a_link_never_leads_out_of_the_volume() {
        use rustix::fs::{RenameFlags, renameat_with};
        use std::sync::atomic::{AtomicBool, Ordering};
        let rounds = std::env::var("BERTH_RACE_ROUNDS");
        let rounds: u32 = rounds.map_or(20_000, |text| text.parse().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::create_dir_all(outside.join("b")).unwrap();
        symlink(&outside, volume.join("swap")).unwrap();
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let (inside, canary) = (inode(&volume.join("a/b")), inode(&outside.join("b")));
        let stop = AtomicBool::new(false);
        let (mut found, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (a, swap) = (volume.join("a"), volume.join("swap"));
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(CWD, &a, CWD, &swap, RenameFlags::EXCHANGE).unwrap();
                }
            });
            for _ in 0..rounds {
                // The second has nothing to find outside, and must not make it there.
                for path in ["a/b", "a/new"] {
                    match open_beneath(&volume, Path::new(path)) {
                        Err(_) => refused += 1,
                        Ok(opened) => {
                            let seen = rustix::fs::fstat(&opened).unwrap().st_ino;
                            assert_ne!(seen, canary, "opened what is outside");
                            found += usize::from(seen == inside);
                        }
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(found > 0 && refused > 0, "no race: {found} found, {refused} refused");
        assert!(!outside.join("new").exists(), "made outside");
    }
}
