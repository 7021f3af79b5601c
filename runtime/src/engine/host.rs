//! What the host can give and what it cannot: read once, told to the operator.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::spec::HostFacts;
use crate::cgroup::{Controller, Hierarchy};
use crate::executable::Executable;

/// What will not be enforced on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Enforcement {
    /// Limits of these controllers do not hold: they are bound to cgroup v1 or not built in.
    pub missing_controllers: BTreeSet<Controller>,
    /// `oom_score_adj` below the agent's own needs CAP_SYS_RESOURCE, which is absent.
    pub oom_score_cannot_be_lowered: bool,
}

impl Enforcement {
    pub(super) fn of(hierarchy: &Hierarchy) -> Self {
        let privilege =
            caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE);
        Self {
            missing_controllers: hierarchy.missing(),
            oom_score_cannot_be_lowered: !privilege.unwrap_or(false),
        }
    }

    /// One sentence for each thing, for the log and `berth check`; empty when all is enforced.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for controller in &self.missing_controllers {
            warnings.push(format!(
                "the cgroup controller {} is not available to cgroup v2: its limits are not enforced",
                controller.name()
            ));
        }
        if self.oom_score_cannot_be_lowered {
            let text = "CAP_SYS_RESOURCE is absent: oom_score_adj cannot be lowered";
            warnings.push(text.to_owned());
        }
        warnings
    }
}

/// What containers can be given. Devices are read only where they are needed: see [`devices`].
pub(super) fn facts(hierarchy: &Hierarchy) -> HostFacts {
    let bounding = caps::read(None, caps::CapSet::Bounding).unwrap_or_default();
    let names = bounding.into_iter().map(|c| serde_json::Value::String(c.to_string()));
    HostFacts {
        capabilities: names.filter_map(|name| serde_json::from_value(name).ok()).collect(),
        devices: Vec::new(),
        controllers: hierarchy.available().clone(),
    }
}

/// All device nodes below `/dev`, but those that a container has of its own. Blocking.
pub(super) fn devices() -> io::Result<Vec<LinuxDevice>> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), &mut found)?;
    Ok(found)
}

const OWN: [&str; 6] = ["pts", "shm", "mqueue", "console", "ptmx", "fd"];

fn collect(dir: &Path, found: &mut Vec<LinuxDevice>) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        let own = dir == Path::new("/dev") && OWN.iter().any(|name| entry.file_name() == *name);
        // Nodes come and go while the directory is read.
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = metadata.file_type();
        let typ = match () {
            () if own => continue,
            () if kind.is_char_device() => LinuxDeviceType::C,
            () if kind.is_block_device() => LinuxDeviceType::B,
            () if kind.is_dir() => {
                collect(&path, found)?;
                continue;
            }
            () => continue,
        };
        let number = metadata.rdev();
        let mut device = LinuxDevice::default();
        device
            .set_path(path)
            .set_typ(typ)
            .set_major(i64::from(rustix::fs::major(number)))
            .set_minor(i64::from(rustix::fs::minor(number)))
            .set_file_mode(Some(metadata.mode() & 0o7777))
            .set_uid(Some(metadata.uid()))
            .set_gid(Some(metadata.gid()));
        found.push(device);
    }
    Ok(())
}

/// Whether pods can have user namespaces: the executable tries it on the directories that containers
/// get files from. Blocking.
pub(super) fn can_map_ids(executable: &Executable, directories: &[&Path]) -> Result<(), String> {
    let output = executable.command().arg("can-map-ids").args(directories).output();
    let output = output.map_err(|error| format!("cannot be tried: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(said.trim().trim_start_matches("berth-oci: ").to_owned())
        }
    }
}

/// Names the running kernel: a record of another boot describes nothing that lives.
pub(super) fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_once_each() {
        let enforcement = Enforcement {
            missing_controllers: [Controller::Memory].into(),
            oom_score_cannot_be_lowered: true,
        };
        let warnings = enforcement.warnings();
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("memory"));
        assert!(Enforcement::default().warnings().is_empty());
    }

    #[test]
    fn the_hosts_null_device_is_found() {
        let devices = devices().unwrap();
        let null = devices.iter().find(|d| d.path() == Path::new("/dev/null")).unwrap();
        assert_eq!((null.major(), null.minor()), (1, 3));
    }
}
