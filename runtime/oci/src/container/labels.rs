//! AppArmor profiles and SELinux labels of a process: checked against the host, and written through a
//! procfs that no container can cover (CVE-2019-16884, CVE-2025-52881).
//!
//! The file is opened before the pivot, and written before the process waits for its start: what is
//! written there is what the next execve(2) becomes, and a profile that is not there fails the creation.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::plan::ProcessPlan;
use super::{Doing, Error, Result, idmap};

const SELINUX_MAGIC: u64 = 0xf97c_ff8c;

/// A label to be taken on at the next execution.
#[derive(Debug)]
pub(super) struct Label {
    field: &'static str,
    file: OwnedFd,
    text: String,
}

impl Label {
    /// Takes it on.
    pub(super) fn write(&self) -> Result<()> {
        rustix::io::write(&self.file, self.text.as_bytes())
            .map(drop)
            .doing(|| format!("{}: take on {:?}", self.field, self.text))
    }
}

/// Opens the files of the labels that a process has. `procfs` must show the caller.
pub(super) fn open(procfs: BorrowedFd<'_>, plan: &ProcessPlan) -> Result<Vec<Label>> {
    let mut labels = Vec::new();
    if let Some(profile) = &plan.apparmor {
        let field = "process.apparmorProfile";
        require_apparmor(field)?;
        let file = match attribute(procfs, "apparmor/exec") {
            // Before Linux 5.8, with AppArmor as the only module of its kind.
            Err(Errno::NOENT) => attribute(procfs, "exec"),
            file => file,
        };
        let file = file.doing(|| format!("{field}: open the attribute"))?;
        labels.push(Label { field, file, text: format!("exec {profile}") });
    }
    if let Some(label) = &plan.selinux {
        let field = "process.selinuxLabel";
        require_selinux(field)?;
        let file = attribute(procfs, "exec").doing(|| format!("{field}: open the attribute"))?;
        labels.push(Label { field, file, text: label.clone() });
    }
    Ok(labels)
}

fn attribute(procfs: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let pid = idmap::own_pid(procfs).map_err(|_| Errno::SRCH)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let path = format!("{pid}/attr/{name}");
    rustix::fs::openat2(procfs, path, flags, Mode::empty(), resolve)
}

fn require_apparmor(field: &str) -> Result<()> {
    match apparmor_is_enabled() {
        true => Ok(()),
        false => Err(Error::invalid(field, "apparmor is not enabled on this host")),
    }
}

/// Whether the kernel confines by AppArmor. Reads sysfs.
pub fn apparmor_is_enabled() -> bool {
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.starts_with(b"Y"))
}

/// An error where the host has no SELinux.
pub(super) fn require_selinux(field: &str) -> Result<()> {
    let root = rustix::fs::statfs(Path::new("/sys/fs/selinux"));
    match root {
        Ok(fs) if fs.f_type as u64 == SELINUX_MAGIC => Ok(()),
        Ok(_) | Err(_) => Err(Error::invalid(field, "SELinux is not enabled on this host")),
    }
}
