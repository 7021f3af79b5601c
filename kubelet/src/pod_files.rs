//! The files that the kubelet makes for a pod: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname` and
//! the termination log.
//!
//! Contents are pure functions of the pod; [`write_in_place`] is the one that touches the disk.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

mod hosts;
mod resolv_conf;
mod termination;

pub use hosts::{host_network_hosts, pod_hosts};
pub use resolv_conf::{DnsNotice, DnsSettings, ResolvConf, resolv_conf};
pub use termination::{
    LastWords, MESSAGE_LIMIT_BYTES, POD_MESSAGE_LIMIT_BYTES, TerminationPolicy, log_tail_message,
    message_limit_bytes, read_message, termination_message,
};

/// Writes a file that containers may have bind-mounted: in place, so that they see the change, and
/// only if it differs. Never follows a link.
pub fn write_in_place(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    let limit = u64::try_from(content.len()).unwrap_or(u64::MAX);
    let mut present = Vec::new();
    Read::by_ref(&mut file).take(limit.saturating_add(1)).read_to_end(&mut present)?;
    if present != content {
        io::Seek::rewind(&mut file)?;
        file.set_len(0)?;
        file.write_all(content)?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_rewritten_in_place_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc-hosts");
        write_in_place(&path, b"one, longer", 0o644).unwrap();
        let before = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
        write_in_place(&path, b"two", 0o644).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&metadata), before);
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let canary = directory.path().join("canary");
        std::fs::write(&canary, b"safe").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&canary, &link).unwrap();
        assert!(write_in_place(&link, b"x", 0o644).is_err());
        assert_eq!(std::fs::read(&canary).unwrap(), b"safe");
    }
}
