//! Kernel settings below `/proc/sys/net` of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::Error;

/// One setting and the value it must have. The name is a path below `/proc/sys/net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: &'static str,
    need: Need,
}

/// What it means when the kernel has no such setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A failure.
    Required,
    /// Nothing: the feature that it tames is not there either.
    IfPresent,
}

impl Setting {
    pub(crate) fn new(name: impl Into<String>, value: &'static str) -> Self {
        Self { name: name.into(), value, need: Need::Required }
    }

    fn if_present(name: impl Into<String>, value: &'static str) -> Self {
        Self { name: name.into(), value, need: Need::IfPresent }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/proc/sys/net").join(&self.name)
    }

    fn read(&self) -> io::Result<String> {
        fs::read_to_string(self.path()).map(|text| text.trim().to_owned())
    }

    /// Whether it has the value already.
    pub(crate) fn holds(&self) -> bool {
        self.read().is_ok_and(|value| value == self.value)
    }

    /// Gives it the value. One that is right is not written: `/proc/sys` may be read-only, and
    /// writing `ip_forward` resets others.
    pub(crate) fn apply(&self) -> Result<(), Error> {
        let failed = |source| Error::Sysctl { name: self.name.clone(), value: self.value, source };
        match (self.read(), self.need) {
            (Ok(value), _) if value == self.value => Ok(()),
            (Err(e), Need::IfPresent) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            (Err(e), _) => Err(failed(e)),
            (Ok(_), _) => fs::write(self.path(), self.value).map_err(failed),
        }
    }
}

/// What the node needs so that it forwards for pods and believes nothing they announce.
pub(crate) fn node(bridge: &str, v4: Family, v6: Family) -> Vec<Setting> {
    let mut settings = Vec::new();
    if v4 == Family::Used {
        let bridge = |name: &str| format!("ipv4/conf/{bridge}/{name}");
        settings.extend([
            Setting::new("ipv4/ip_forward", "1"),
            Setting::new(bridge("accept_redirects"), "0"),
            Setting::new(bridge("secure_redirects"), "0"),
            Setting::new(bridge("route_localnet"), "0"),
            // Pods reach each other through the bridge's own address; a redirect would send them
            // around it. The kernel sends if either this or the interface's is set.
            Setting::new("ipv4/conf/all/send_redirects", "0"),
            Setting::new(bridge("send_redirects"), "0"),
            // Strict: only the pod range may arrive from the bridge.
            Setting::new(bridge("rp_filter"), "1"),
        ]);
    }
    if v6 == Family::Used {
        let bridge = |name: &str| format!("ipv6/conf/{bridge}/{name}");
        settings.extend([
            Setting::new(bridge("disable_ipv6"), "0"),
            Setting::new(bridge("accept_dad"), "0"),
            Setting::new("ipv6/conf/all/forwarding", "1"),
        ]);
    }
    // Also without addresses of this family: the kernel would take those that pods announce.
    let quiet = ["accept_ra", "autoconf", "accept_redirects"];
    let quiet = quiet.map(|name| (format!("ipv6/conf/{bridge}/{name}"), "0"));
    settings.extend(quiet.map(|(name, value)| Setting::if_present(name, value)));
    settings
}

/// The settings without which nothing is forwarded; somebody may turn them off later.
pub(crate) fn forwarding(v4: Family, v6: Family) -> Vec<Setting> {
    let of = |family, name| (family == Family::Used).then(|| Setting::new(name, "1"));
    [of(v4, "ipv4/ip_forward"), of(v6, "ipv6/conf/all/forwarding")].into_iter().flatten().collect()
}

/// What the inside of a pod needs before its interface exists, which inherits the defaults.
pub(crate) fn pod(v4: Family, v6: Family) -> Vec<Setting> {
    let mut settings = Vec::new();
    if v4 == Family::Used {
        settings.extend([
            Setting::new("ipv4/conf/all/accept_redirects", "0"),
            Setting::new("ipv4/conf/default/accept_redirects", "0"),
        ]);
    }
    if v6 == Family::Used {
        settings.extend([
            Setting::new("ipv6/conf/all/disable_ipv6", "0"),
            Setting::new("ipv6/conf/default/disable_ipv6", "0"),
            // The node chose the address; nobody else can have it.
            Setting::new("ipv6/conf/default/accept_dad", "0"),
        ]);
    }
    settings.extend([
        Setting::if_present("ipv6/conf/default/accept_ra", "0"),
        Setting::if_present("ipv6/conf/default/autoconf", "0"),
        Setting::if_present("ipv6/conf/default/accept_redirects", "0"),
    ]);
    settings
}

/// Whether pods have addresses of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Used,
    Unused,
}

/// Interfaces that learn their routes from router advertisements: with forwarding on the kernel
/// ignores advertisements, and the uplink would lose its default route, unless told otherwise.
pub(crate) fn keep_router_advertisements(bridge: &str) -> Result<(), Error> {
    let conf = PathBuf::from("/proc/sys/net/ipv6/conf");
    let Ok(entries) = fs::read_dir(&conf) else {
        return Ok(());
    };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let setting = Setting::new(format!("ipv6/conf/{name}/accept_ra"), "2");
        let special = matches!(name.as_str(), "all" | "default" | "lo") || name == bridge;
        if !special && setting.read().is_ok_and(|value| value == "1") {
            setting.apply()?;
        }
    }
    Ok(())
}
