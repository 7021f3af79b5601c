//! Whether pods can have user namespaces here: asked by doing it. mount_setattr(2).

use std::os::fd::AsFd;
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen,
    open_tree,
};

use super::namespaces::{Mappings, Range};
use super::{Doing, Result, idmap, sysctl};
use crate::sys;

/// Makes a user namespace and maps the ids of a file system in memory (Linux 6.3) and of those that
/// `directories` are on. Everything is gone afterwards.
pub(crate) fn user_namespaces(directories: &[impl AsRef<Path>]) -> Result<()> {
    let ids = || vec![Range { inside: 0, outside: 1 << 16, size: 1 << 16 }];
    let procfs = sysctl::detached_procfs()?;
    let user = idmap::namespace(procfs.as_fd(), &Mappings { uids: ids(), gids: ids() })?;
    let memory = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
        .and_then(|context| {
            fsconfig_create(&context)?;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        })
        .doing(|| "make a file system in memory")?;
    sys::map_mount_ids(memory.as_fd(), user.as_fd(), false)
        .doing(|| "map the ids of a file system in memory, which kernels do from Linux 6.3 on")?;
    for directory in directories {
        let path = directory.as_ref();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree =
            open_tree(rustix::fs::CWD, path, flags).doing(|| format!("open {}", path.display()))?;
        sys::map_mount_ids(tree.as_fd(), user.as_fd(), false)
            .doing(|| format!("map the ids of the file system of {}", path.display()))?;
    }
    Ok(())
}
