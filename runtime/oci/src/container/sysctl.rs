//! Sysctls: from their dotted names to files of procfs, written through a detached procfs.
//!
//! The agent has decided which are allowed; here the grammar is held so that no name reaches another
//! file (CVE-2022-0811, CVE-2025-52881).

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Doing, Error, Result};

/// A sysctl ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sysctl {
    /// Below the procfs root.
    pub(crate) path: PathBuf,
    pub(crate) value: String,
}

/// Parses a name in the dotted or the slashed form.
pub(crate) fn parse(name: &str, value: &str) -> Result<Sysctl> {
    let refuse = |reason: &str| Err(Error::invalid(format!("sysctl {name}"), reason));
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-./".contains(&b);
    if !name.bytes().all(allowed) {
        return refuse("the name holds characters other than letters, digits, _ - . /");
    }
    if value.chars().any(char::is_control) {
        return refuse("the value holds control characters");
    }
    // Whichever separator comes first separates; the other one is then part of names (`eth0.1`).
    let separator = if name.find('/') < name.find('.') && name.contains('/') || !name.contains('.')
    {
        '/'
    } else {
        '.'
    };
    let mut path = PathBuf::from("sys");
    for part in name.split(separator) {
        let part = match separator {
            '.' => part.replace('/', "."),
            _ => part.to_owned(),
        };
        if part.is_empty() || part == "." || part == ".." {
            return refuse("the name has an empty or relative part");
        }
        path.push(part);
    }
    Ok(Sysctl { path, value: value.to_owned() })
}

impl Sysctl {
    /// The name in the dotted form.
    pub(super) fn name(&self) -> String {
        let path = self.path.strip_prefix("sys").unwrap_or(&self.path);
        path.display().to_string().replace('/', ".")
    }

    /// The kind of namespace it belongs to; none for what is the whole host's.
    pub(super) fn namespace(&self) -> Option<LinuxNamespaceType> {
        let name = self.path.strip_prefix("sys").unwrap_or(&self.path).display().to_string();
        let ipc = ["kernel/shm", "kernel/msg", "kernel/sem", "fs/mqueue/"];
        match name.as_str() {
            name if name.starts_with("net/") => Some(LinuxNamespaceType::Network),
            name if ipc.iter().any(|prefix| name.starts_with(prefix)) => {
                Some(LinuxNamespaceType::Ipc)
            }
            "kernel/domainname" | "kernel/hostname" => Some(LinuxNamespaceType::Uts),
            _ => None,
        }
    }
}

/// Which namespaces a process does not share with the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnNamespaces {
    pub(crate) network: bool,
    pub(crate) ipc: bool,
    pub(crate) uts: bool,
}

/// Refuses a sysctl of no namespace of one's own: the host's value must never change.
pub(crate) fn require_own(sysctl: &Sysctl, own: &OwnNamespaces) -> Result<()> {
    let belongs = match sysctl.namespace() {
        Some(LinuxNamespaceType::Network) => own.network,
        Some(LinuxNamespaceType::Ipc) => own.ipc,
        Some(LinuxNamespaceType::Uts) => own.uts,
        Some(_) | None => false,
    };
    if belongs {
        return Ok(());
    }
    let reason = "belongs to no namespace of the container's own";
    Err(Error::invalid(format!("sysctl {}", sysctl.name()), reason))
}

/// Writes one, in the namespaces of the caller, through the root of a procfs.
pub(crate) fn write(procfs: BorrowedFd<'_>, sysctl: &Sysctl) -> Result<()> {
    let operation = || format!("write sysctl {}", sysctl.path.display());
    write_proc(procfs, &sysctl.path, sysctl.value.as_bytes()).doing(operation)
}

/// Writes a file of procfs, following nothing and leaving it nowhere.
pub(crate) fn write_proc(
    procfs: BorrowedFd<'_>,
    path: &Path,
    value: &[u8],
) -> Result<(), rustix::io::Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(procfs, path, flags, Mode::empty(), resolve)?;
    rustix::io::write(&file, value).map(drop)
}

/// A procfs of the caller's PID namespace that is attached nowhere.
pub(crate) fn detached_procfs() -> Result<std::os::fd::OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let context =
        rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).doing(|| "open a procfs")?;
    rustix::mount::fsconfig_create(&context).doing(|| "make a procfs")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .doing(|| "mount a procfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> String {
        parse(name, "1").unwrap().path.display().to_string()
    }

    #[test]
    fn both_forms_name_the_same_file() {
        assert_eq!(path("net.ipv4.ip_forward"), "sys/net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/ip_forward"), "sys/net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding"), "sys/net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding"), "sys/net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn only_sysctls_of_own_namespaces_are_let_through() {
        let own = OwnNamespaces { network: true, ipc: false, uts: false };
        let check = |name| require_own(&parse(name, "1").unwrap(), &own);
        assert!(check("net.core.somaxconn").is_ok());
        for name in ["kernel.shmmax", "kernel.core_pattern", "vm.swappiness", "kernel.hostname"] {
            assert!(check(name).is_err(), "{name}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "a..b", "../x", "a/../b", "/a", "a b", "a\nb", "a+b", "a=b"] {
            assert!(parse(name, "1").is_err(), "{name:?}");
        }
        assert!(parse("kernel.shm_rmid_forced", "1\n2").is_err());
    }
}
