//! Which devices a container may use (OCI runtime specification, *Allowed Device list*).

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Character devices that every container may read and write, by major and minor number.
const ALLOWED: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// The rules in order: none but the standard ones, or all.
pub(super) fn rules(privileged: bool) -> Vec<LinuxDeviceCgroup> {
    if privileged {
        return vec![rule(true, "rwm")];
    }
    let mut rules = vec![rule(false, "rwm")];
    // Making a node needs no access to what it names.
    for kind in [LinuxDeviceType::C, LinuxDeviceType::B] {
        let mut make = rule(true, "m");
        make.set_typ(Some(kind));
        rules.push(make);
    }
    for (major, minor) in ALLOWED {
        let mut device = rule(true, "rwm");
        device.set_typ(Some(LinuxDeviceType::C)).set_major(Some(major)).set_minor(minor);
        rules.push(device);
    }
    rules
}

fn rule(allow: bool, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_access(Some(access.to_owned()));
    rule
}
