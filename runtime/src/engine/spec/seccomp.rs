//! Which seccomp filter a container runs under. Whatever is not a whole, valid profile is refused:
//! an empty one would mean no filter at all (CVE-2023-2431).

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxSeccomp};

use crate::interface::{Seccomp, Security};

/// Chooses the profile.
pub(super) fn choose(
    security: &Security,
    local: Option<LinuxSeccomp>,
    capabilities: &HashSet<Capability>,
) -> Result<Option<LinuxSeccomp>, String> {
    if security.privileged {
        return Ok(None);
    }
    match &security.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => Ok(Some(berth_oci::default_seccomp(capabilities))),
        Seccomp::Localhost(path) => match local {
            Some(profile) => Ok(Some(profile)),
            None => Err(format!("seccomp profile {} was not read", path.display())),
        },
    }
}

/// Reads a profile in the OCI JSON form.
///
/// # Errors
/// Why it is none.
pub(crate) fn parse(bytes: &[u8]) -> Result<LinuxSeccomp, String> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
    if value.get("defaultAction").is_none() {
        return Err("it names no defaultAction".to_owned());
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_and_foreign_profiles_are_refused() {
        for bad in ["", "{}", "null", "[]", r#"{"defaultAction":"SCMP_ACT_NOPE"}"#] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let good = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#;
        assert!(parse(good.as_bytes()).is_ok());
    }

    #[test]
    fn a_privileged_container_has_no_filter_and_an_ordinary_one_has() {
        let ordinary = Security::default();
        let privileged = Security { privileged: true, ..Security::default() };
        let none = HashSet::new();
        assert!(choose(&ordinary, None, &none).unwrap().is_some());
        assert!(choose(&privileged, None, &none).unwrap().is_none());
        let local = Security { seccomp: Seccomp::Localhost("/p".into()), ..Security::default() };
        assert!(choose(&local, None, &none).is_err());
    }
}
