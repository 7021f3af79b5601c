//! Which devices a container may use (OCI runtime specification, *Allowed Device list*).

use oci_spec::runtime::LinuxDeviceCgroup;

/// The one rule: all, or none but the customary devices, which `berth-oci` adds to any list.
pub(super) fn rules(privileged: bool) -> Vec<LinuxDeviceCgroup> {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(privileged).set_access(Some("rwm".to_owned()));
    vec![rule]
}
