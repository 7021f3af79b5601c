//! Which sysctls pods may set.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

/// Sysctls that are namespaced and cannot harm neighbours.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// A sysctl that a pod may not set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SysctlForbidden {
    /// Neither safe nor allowed by the node.
    #[error("forbidden sysctl: {0:?} not allowlisted")]
    NotAllowlisted(String),
    /// It would set the host's.
    #[error("forbidden sysctl: {sysctl:?} not allowed with host {namespace} enabled")]
    HostNamespace {
        /// The sysctl.
        sysctl: String,
        /// `ipc` or `net`.
        namespace: &'static str,
    },
}

/// The sysctls that a node lets pods set.
#[derive(Debug, Clone, Default)]
pub struct SysctlPolicy {
    allowed: Vec<String>,
}

impl SysctlPolicy {
    /// The safe ones and those of `allowed_unsafe`: names, or prefixes with a final `*`.
    pub fn new(allowed_unsafe: &[String]) -> Self {
        Self { allowed: allowed_unsafe.iter().map(|name| dotted(name)).collect() }
    }

    /// The pod's sysctls in the dotted form, or the first one that is forbidden.
    pub fn admitted(&self, pod: &Pod) -> Result<BTreeMap<String, String>, SysctlForbidden> {
        let spec = pod.spec.as_ref();
        let host_ipc = spec.and_then(|spec| spec.host_ipc) == Some(true);
        let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
        let context = spec.and_then(|spec| spec.security_context.as_ref());
        let wanted = context.and_then(|context| context.sysctls.as_ref());
        let mut admitted = BTreeMap::new();
        for sysctl in wanted.into_iter().flatten() {
            let name = dotted(&sysctl.name);
            let namespace = namespace_of(&name).filter(|_| self.allows(&name));
            let on_host = match namespace {
                None => return Err(SysctlForbidden::NotAllowlisted(name)),
                Some("ipc") => host_ipc,
                Some(_) => host_network,
            };
            if let (true, Some(namespace)) = (on_host, namespace) {
                return Err(SysctlForbidden::HostNamespace { sysctl: name, namespace });
            }
            admitted.insert(name, sysctl.value.clone());
        }
        Ok(admitted)
    }

    fn allows(&self, name: &str) -> bool {
        SAFE.contains(&name)
            || self.allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => pattern == name,
            })
    }
}

/// The namespace that holds a sysctl; none for those of the whole host, and for what is no name.
fn namespace_of(name: &str) -> Option<&'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    let odd = !name.bytes().all(plain) || name.split(['.', '/']).any(str::is_empty);
    let is_ipc =
        ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix));
    match name {
        _ if odd => None,
        _ if is_ipc || name == "kernel.sem" => Some("ipc"),
        _ if name.starts_with("net.") => Some("net"),
        _ => None,
    }
}

/// `net/ipv4/conf/eth0.1/x` as `net.ipv4.conf.eth0/1.x`: the first separator decides the form.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(position) if name.as_bytes()[position] == b'/' => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn admitted(name: &str, host: bool, allowed: &[&str]) -> Result<Vec<String>, String> {
        let allowed: Vec<_> = allowed.iter().map(|a| (*a).to_owned()).collect();
        let pod = serde_json::from_value(json!({"spec": {
            "containers": [], "hostNetwork": host, "hostIPC": host,
            "securityContext": {"sysctls": [{"name": name, "value": "1"}]},
        }}))
        .unwrap();
        let admitted = SysctlPolicy::new(&allowed).admitted(&pod);
        admitted.map(|s| s.into_keys().collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn safe_ones_pass_in_either_form() {
        for safe in SAFE {
            assert_eq!(admitted(safe, false, &[]), Ok(vec![safe.to_owned()]));
        }
        assert_eq!(
            admitted("net/ipv4/tcp_syncookies", false, &[]),
            Ok(vec!["net.ipv4.tcp_syncookies".to_owned()])
        );
    }

    #[test]
    fn others_need_the_nodes_consent_and_a_namespace() {
        let not_listed = |name: &str| Err(format!("forbidden sysctl: {name:?} not allowlisted"));
        assert_eq!(admitted("kernel.msgmax", false, &[]), not_listed("kernel.msgmax"));
        assert!(admitted("kernel.msgmax", false, &["kernel.msg*"]).is_ok());
        assert!(admitted("net.core.somaxconn", false, &["net.core.somaxconn"]).is_ok());
        assert!(admitted("net.ipv4.conf.eth0/1.forwarding", false, &["net.*"]).is_ok());
        for host_wide in ["vm.swappiness", "kernel.core_pattern"] {
            assert_eq!(admitted(host_wide, false, &["*"]), not_listed(host_wide));
        }
        for path in ["net./../kernel/core_pattern", "net..x", "net.ipv4.\n"] {
            assert!(admitted(path, false, &["net.*"]).is_err(), "{path}");
        }
    }

    #[test]
    fn host_namespaces_are_off_limits() {
        assert_eq!(
            admitted("net.ipv4.tcp_syncookies", true, &[]),
            Err("forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled"
                .into())
        );
        assert!(admitted("kernel.shm_rmid_forced", true, &[]).unwrap_err().contains("host ipc"));
    }
}
