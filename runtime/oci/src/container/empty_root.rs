//! A process with nothing: the reaper of a shared PID namespace.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::WaitOptions;
use rustix::thread::{CapabilitySet, move_into_link_name_space};

use super::plan::Capabilities;
use super::process::Keeper;
use super::{Doing, Result, credentials, masks, process, rootfs};
use crate::protocol::ResolvedUser;
use crate::sys;

/// Enters the sandbox's namespaces and gives everything else up.
pub(crate) fn retire(namespaces: &[OwnedFd]) -> Result<()> {
    process::harden(Keeper::Shim)?;
    for namespace in namespaces {
        move_into_link_name_space(namespace.as_fd(), None)
            .doing(|| "enter a namespace of the sandbox")?;
    }
    rootfs::cut_off(None)?;
    let root = rootfs::attach(
        masks::empty_directory().doing(|| "make an empty root")?,
        std::path::Path::new("/"),
    )?;
    rootfs::pivot(&root)?;
    let none = CapabilitySet::empty();
    let nothing = Capabilities {
        bounding: none,
        effective: none,
        permitted: none,
        ambient: none,
        inheritable: none,
    };
    let nobody = ResolvedUser { uid: 65_534, gid: 65_534, supplemental_groups: Vec::new() };
    let remaining = credentials::become_user(&nobody, &nothing, none, &mut Vec::new())?;
    credentials::finish(remaining)?;
    rustix::thread::set_no_new_privs(true).doing(|| "set no_new_privs")?;
    process::harden(Keeper::Shim)?;
    // The descriptors stay owned by a frame that never returns.
    std::mem::forget(root);
    sys::close_range_from(0).doing(|| "close descriptors")
}

/// Reaps whatever becomes a child. All signals stay blocked; the shim's death kills.
pub(crate) fn reap_for_ever() -> ! {
    loop {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        sys::wait_signal();
    }
}
