//! Which capabilities a container gets (capabilities(7)): Docker's default set, changed by the pod.

use std::collections::HashSet;

use oci_spec::runtime::Capability;

use crate::interface::Security;

const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Reads a name with or without `CAP_`, in any case.
pub(super) fn parse(name: &str) -> Result<Capability, String> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let value = serde_json::Value::String(format!("CAP_{bare}"));
    serde_json::from_value(value).map_err(|_| format!("unknown capability {name:?}"))
}

/// The capabilities of a container on a host that can give `available`.
///
/// # Errors
/// A name that is no capability, or one that was asked for by name and the host cannot give.
pub(super) fn grant(
    security: &Security,
    available: &HashSet<Capability>,
) -> Result<HashSet<Capability>, String> {
    if security.privileged {
        return Ok(available.clone());
    }
    let is_all =
        |name: &String| name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL");
    let named = |names: &[String]| -> Result<Vec<Capability>, String> {
        names.iter().filter(|n| !is_all(n)).map(|n| parse(n)).collect()
    };
    let added = named(&security.add_capabilities)?;
    let dropped = named(&security.drop_capabilities)?;
    let mut granted: HashSet<Capability> = match () {
        () if security.add_capabilities.iter().any(is_all) => available.clone(),
        () if security.drop_capabilities.iter().any(is_all) => HashSet::new(),
        () => DEFAULT.into_iter().filter(|c| available.contains(c)).collect(),
    };
    if let Some(lacking) = added.iter().find(|c| !available.contains(c)) {
        return Err(format!("the host cannot give the capability {lacking}"));
    }
    granted.extend(added);
    for capability in dropped {
        granted.remove(&capability);
    }
    Ok(granted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> HashSet<Capability> {
        let mut all: HashSet<_> = DEFAULT.into_iter().collect();
        all.extend([Capability::SysAdmin, Capability::NetAdmin]);
        all
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn granted(add: &[&str], drop: &[&str]) -> HashSet<Capability> {
        let security = Security {
            add_capabilities: names(add),
            drop_capabilities: names(drop),
            ..Security::default()
        };
        grant(&security, &all()).unwrap()
    }

    #[test]
    fn add_and_drop_are_combined_as_containerd_does() {
        assert_eq!(granted(&[], &[]), DEFAULT.into());
        assert_eq!(granted(&["NET_ADMIN"], &["ALL"]), [Capability::NetAdmin].into());
        assert_eq!(granted(&["all"], &["SYS_ADMIN"]).len(), 15);
        assert_eq!(granted(&["ALL"], &["ALL"]), all());
        assert!(!granted(&[], &["CAP_CHOWN"]).contains(&Capability::Chown));
    }

    #[test]
    fn privileged_is_all_that_the_host_can_give() {
        let security = Security {
            privileged: true,
            drop_capabilities: names(&["ALL"]),
            ..Security::default()
        };
        assert_eq!(grant(&security, &all()).unwrap(), all());
    }

    #[test]
    fn unknown_and_ungivable_capabilities_are_refused_by_name() {
        for name in ["NOPE", "", "SYS_RESOURCE"] {
            let security = Security { add_capabilities: names(&[name]), ..Security::default() };
            assert!(grant(&security, &all()).is_err(), "{name}");
        }
    }
}
