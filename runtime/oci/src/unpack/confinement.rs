//! What the unpacker gives up before it reads its first byte.
//!
//! It keeps one directory, three standard streams and the capabilities that file ownership takes. No
//! network, no other path (Landlock, where the kernel has it, on top of lookups confined to the
//! root), no new privileges, bounded memory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::Error;
use crate::sys::{self, MountAttributes};

/// Enough for the largest zstd window that is accepted and for any sane header.
const MAX_ADDRESS_SPACE: u64 = 512 << 20;

fn confine<T, E: Into<io::Error>>(
    operation: &'static str,
    result: Result<T, E>,
) -> Result<T, Error> {
    result.map_err(|error| Error::Confine { operation, source: error.into() })
}

/// Opens the root and gives up everything else.
pub(super) fn enter(root: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = confine("open the root", rustix::fs::open(root, flags, Mode::empty()))?;
    confine("close descriptors", sys::close_all_from(3, &[root.as_fd()]))?;
    confine(
        "become undumpable",
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable),
    )?;
    confine("leave the namespaces", sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET))?;
    let host = confine("open /", rustix::fs::open("/", flags, Mode::empty()))?;
    let private = MountAttributes {
        propagation: libc::MS_PRIVATE,
        recursive: true,
        ..MountAttributes::default()
    };
    confine("make mounts private", sys::set_mount_attributes(host.as_fd(), private))?;
    drop(host);
    confine("set no_new_privs", rustix::thread::set_no_new_privs(true))?;
    rustix::process::umask(Mode::empty());
    for (resource, value) in
        [(Resource::Core, 0), (Resource::Nofile, 64), (Resource::As, MAX_ADDRESS_SPACE)]
    {
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        confine("set limits", rustix::process::setrlimit(resource, limit))?;
    }
    restrict_paths(&root)?;
    Ok(root)
}

fn restrict_paths(root: &OwnedFd) -> Result<(), Error> {
    let access = AccessFs::from_all(ABI::V5);
    let result = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(access)
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rule(PathBeneath::new(root, access)))
        .and_then(|ruleset| ruleset.restrict_self());
    confine("restrict paths", result.map(drop).map_err(io::Error::other))
}
