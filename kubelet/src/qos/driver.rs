//! Who makes pods' cgroups (`cgroupDriver`), and the names they have then. Pure: the runtime tells a slice
//! by its path.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Class;

/// Who makes the cgroups of QoS classes and pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// berth, as directories.
    #[default]
    Cgroupfs,
    /// systemd, as slices.
    Systemd,
}

impl Driver {
    /// The value of `cgroupDriver`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }

    /// The cgroup of a class, relative to the cgroup mount.
    pub fn class_path(self, class: Class) -> PathBuf {
        match (self, class) {
            (Self::Cgroupfs, Class::Guaranteed) => "kubepods".into(),
            (Self::Cgroupfs, Class::Burstable) => "kubepods/burstable".into(),
            (Self::Cgroupfs, Class::BestEffort) => "kubepods/besteffort".into(),
            (Self::Systemd, Class::Guaranteed) => "kubepods.slice".into(),
            (Self::Systemd, _) => format!("kubepods.slice/{}.slice", class_stem(class)).into(),
        }
    }

    /// The cgroup of a pod, relative to the cgroup mount: `kubepods/burstable/pod<uid>`, or
    /// `…/kubepods-burstable-pod<uid>.slice` with `_` for each `-` of the UID, as a `-` would be another
    /// slice.
    pub fn pod_path(self, class: Class, uid: &str) -> PathBuf {
        let name = match self {
            Self::Cgroupfs => format!("pod{uid}"),
            Self::Systemd => format!("{}-pod{}.slice", class_stem(class), uid.replace('-', "_")),
        };
        self.class_path(class).join(name)
    }
}

/// The name of a class's slice, without its ending.
fn class_stem(class: Class) -> &'static str {
    match class {
        Class::Guaranteed => "kubepods",
        Class::Burstable => "kubepods-burstable",
        Class::BestEffort => "kubepods-besteffort",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_upstream_ones() {
        let burstable = "kubepods.slice/kubepods-burstable.slice";
        let best_effort = "kubepods.slice/kubepods-besteffort.slice";
        for (driver, class, of_class, of_pod) in [
            (Driver::Cgroupfs, Class::Guaranteed, "kubepods", "podu-1"),
            (Driver::Cgroupfs, Class::Burstable, "kubepods/burstable", "podu-1"),
            (Driver::Cgroupfs, Class::BestEffort, "kubepods/besteffort", "podu-1"),
            (Driver::Systemd, Class::Guaranteed, "kubepods.slice", "kubepods-podu_1.slice"),
            (Driver::Systemd, Class::Burstable, burstable, "kubepods-burstable-podu_1.slice"),
            (Driver::Systemd, Class::BestEffort, best_effort, "kubepods-besteffort-podu_1.slice"),
        ] {
            assert_eq!(driver.class_path(class), PathBuf::from(of_class));
            assert_eq!(driver.pod_path(class, "u-1"), PathBuf::from(of_class).join(of_pod));
        }
    }
}
