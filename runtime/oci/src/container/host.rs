//! What a container takes from the host, opened while the host's tree is still in sight and the
//! process still has the privilege for it.
//!
//! Sources of binds, devices and the root file system are paths of the host, chosen by whoever wrote
//! the specification; none of them is a path of the container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::birth::Late;
use super::namespaces::User;
use super::plan::Plan;
use super::{Result, child, devices, idmap, labels, masks, mounts, rootfs};
use crate::protocol::Rootfs;

/// Descriptors of the host's files.
pub(super) struct Host {
    pub(super) null: OwnedFd,
    /// For each mount of the plan.
    pub(super) sources: Vec<mounts::Source>,
    /// For each device of the plan, where nodes cannot be made.
    pub(super) devices: Option<Vec<OwnedFd>>,
    pub(super) rootfs: OwnedFd,
}

impl Host {
    /// Opens everything, in a mount namespace of one's own that is cut off from the host's here.
    pub(super) fn open(plan: &Plan, procfs: BorrowedFd<'_>, late: Option<&Late>) -> Result<Self> {
        if plan.mount_label.is_some() {
            labels::require_selinux("linux.mountLabel")?;
        }
        rootfs::cut_off(plan.root_propagation)?;
        let null = masks::open_null()?;
        let sources = mounts::open_sources(plan, procfs, late)?;
        let devices = match &plan.devices {
            Some(list) if plan.binds_devices() => Some(devices::open(list)?),
            _ => None,
        };
        let ids = match (&plan.rootfs, &plan.namespaces.user) {
            // A directory is the caller's to give to whom it likes.
            (Rootfs::Directory(_), _) | (Rootfs::Overlay { .. }, User::Shared) => None,
            (Rootfs::Overlay { .. }, User::New(map)) => Some(idmap::namespace(procfs, map)?),
            (Rootfs::Overlay { .. }, User::Joined { path, .. }) => {
                Some(child::open_namespace(path)?)
            }
        };
        let rootfs = rootfs::make(plan, ids.as_ref().map(AsFd::as_fd), procfs)?;
        Ok(Self { null, sources, devices, rootfs })
    }
}
