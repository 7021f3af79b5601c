//! Device nodes and the customary links of `/dev`, made on descriptors inside the root.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::mounts::{copy, move_onto};
use super::plan::{Device, DeviceKind};
use super::rootfd::{RootFd, entry};
use super::{Doing, Error, Result};

const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

fn field(device: &Device) -> String {
    format!("linux.devices[/{}]", device.path.display())
}

/// Opens the host's nodes of the same path, for a user namespace, where none can be made.
pub(super) fn open(devices: &[Device]) -> Result<Vec<OwnedFd>> {
    let of_host = |device: &Device| {
        let path = Path::new("/").join(&device.path);
        let operation = || format!("{}: open the host's", field(device));
        let (kind, number) = kind(device);
        if kind == FileType::Fifo {
            return Err(Error::invalid(field(device), "type p cannot be made in a user namespace"));
        }
        let flags =
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        let node = rustix::fs::open(&path, flags, Mode::empty()).doing(operation)?;
        let stat = rustix::fs::fstat(&node).doing(operation)?;
        if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != number {
            let reason = "the host's node of that path, which a user namespace needs, is another";
            return Err(Error::invalid(field(device), reason));
        }
        copy(node.as_fd(), OpenTreeFlags::empty()).doing(operation)
    };
    devices.iter().map(of_host).collect()
}

/// Binds the host's nodes, and makes the links.
pub(super) fn bind(root: &RootFd, devices: &[Device], nodes: &[OwnedFd]) -> Result<()> {
    let dev = root.ensure_directory(Path::new("dev")).doing(|| "find /dev")?;
    for (device, node) in devices.iter().zip(nodes) {
        let operation = || format!("bind device /{}", device.path.display());
        let place = root.ensure_file(&device.path).doing(operation)?;
        move_onto(node.as_fd(), place.as_fd()).doing(operation)?;
    }
    link(&dev)
}

/// Makes the nodes and links.
pub(super) fn make(root: &RootFd, devices: &[Device]) -> Result<()> {
    let dev = root.ensure_directory(Path::new("dev")).doing(|| "find /dev")?;
    for device in devices {
        let operation = || format!("make device /{}", device.path.display());
        let name = device.path.file_name().ok_or(Errno::INVAL).doing(operation)?;
        match device.path.parent() {
            Some(parent) if parent != Path::new("dev") => {
                let parent = root.ensure_directory(parent).doing(operation)?;
                node(parent.as_fd(), name, device).doing(operation)?;
            }
            _ => node(dev.as_fd(), name, device).doing(operation)?,
        }
    }
    link(&dev)
}

fn link(dev: &OwnedFd) -> Result<()> {
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).doing(|| format!("make link /dev/{name}")),
        }
    }
    let operation = || "make link /dev/ptmx";
    match rustix::fs::unlinkat(dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error).doing(operation),
    }
    rustix::fs::symlinkat("pts/ptmx", dev, "ptmx").doing(operation)
}

fn kind(device: &Device) -> (FileType, u64) {
    match device.kind {
        DeviceKind::Character { major, minor } => {
            (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
        }
        DeviceKind::Block { major, minor } => {
            (FileType::BlockDevice, rustix::fs::makedev(major, minor))
        }
        DeviceKind::Fifo => (FileType::Fifo, 0),
    }
}

fn node(parent: BorrowedFd<'_>, name: &OsStr, device: &Device) -> Result<(), Errno> {
    let (kind, number) = kind(device);
    let mode = Mode::from_raw_mode(device.mode);
    if let Some(stat) = entry(parent, name)? {
        // What an image left in a directory of its own: only the same device may stay.
        let same = FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number;
        return if same { Ok(()) } else { Err(Errno::EXIST) };
    }
    rustix::fs::mknodat(parent, name, kind, mode, number)?;
    if device.uid == 0 && device.gid == 0 {
        return Ok(());
    }
    let owner = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, name, Some(owner.0), Some(owner.1), flags)
}
