//! A pod's host name and DNS domain.

use k8s_openapi::api::core::v1::Pod;

use super::ConfigError;

const LABEL_MAX: usize = 63;
/// What the kernel's `utsname` holds.
const KERNEL_MAX: usize = 64;

/// What a pod is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodHostname {
    /// The short name, as in `/etc/hosts`.
    pub name: String,
    /// The domain of its subdomain; empty where it has none.
    pub domain: String,
    /// What `uname` says: the short name, or the full one with `setHostnameAsFQDN`.
    pub kernel_name: String,
}

/// Works out a pod's host name from `hostnameOverride`, `hostname`, `subdomain` and its own name.
pub fn pod_hostname(pod: &Pod, cluster_domain: &str) -> Result<PodHostname, ConfigError> {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let text = |value: Option<&String>| value.cloned().filter(|value| !value.is_empty());
    if let Some(name) = spec.and_then(|spec| spec.hostname_override.as_ref()) {
        if !is_dns_subdomain(name) {
            return Err(ConfigError::Hostname(format!(
                "pod HostnameOverride {name:?} is not a valid DNS subdomain"
            )));
        }
        let name = truncated(name)?;
        return Ok(PodHostname { kernel_name: name.clone(), name, domain: String::new() });
    }
    let name = match text(spec.and_then(|spec| spec.hostname.as_ref())) {
        Some(name) => checked_label("Hostname", name)?,
        None => pod.metadata.name.clone().unwrap_or_default(),
    };
    let name = truncated(&name)?;
    let domain = match text(spec.and_then(|spec| spec.subdomain.as_ref())) {
        Some(subdomain) => {
            let subdomain = checked_label("Subdomain", subdomain)?;
            format!("{subdomain}.{namespace}.svc.{cluster_domain}")
        }
        None => String::new(),
    };
    let as_fqdn = spec.and_then(|spec| spec.set_hostname_as_fqdn) == Some(true);
    let kernel_name = if as_fqdn && !domain.is_empty() {
        fitting_the_kernel(format!("{name}.{domain}"))?
    } else {
        name.clone()
    };
    Ok(PodHostname { name, domain, kernel_name })
}

fn fitting_the_kernel(fqdn: String) -> Result<String, ConfigError> {
    if fqdn.len() <= KERNEL_MAX {
        return Ok(fqdn);
    }
    Err(ConfigError::Hostname(format!(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long \
         ({KERNEL_MAX} characters is the max, {} characters requested)",
        fqdn.len()
    )))
}

fn checked_label(field: &str, value: String) -> Result<String, ConfigError> {
    if is_dns_label(&value) {
        return Ok(value);
    }
    Err(ConfigError::Hostname(format!("pod {field} {value:?} is not a valid DNS label")))
}

fn truncated(name: &str) -> Result<String, ConfigError> {
    let cut = name.get(..LABEL_MAX.min(name.len())).unwrap_or_default();
    let kept = if name.len() > LABEL_MAX { cut.trim_end_matches(['-', '.']) } else { name };
    if kept.is_empty() || kept.bytes().any(|b| b.is_ascii_control()) {
        return Err(ConfigError::Hostname(format!("hostname {name:?} is invalid")));
    }
    Ok(kept.to_owned())
}

fn is_dns_label(label: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=LABEL_MAX).contains(&label.len())
        && label.bytes().all(allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_dns_subdomain(name: &str) -> bool {
    let labels_hold = name.split('.').all(|label| {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    });
    name.len() <= 253 && labels_hold
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hostname(name: &str, spec: serde_json::Value) -> Result<PodHostname, String> {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
        let pod = serde_json::from_value(pod).unwrap();
        pod_hostname(&pod, "cluster.local").map_err(|e| e.to_string())
    }

    fn parts(host: PodHostname) -> (String, String, String) {
        (host.name, host.domain, host.kernel_name)
    }

    #[test]
    fn names_follow_the_table() {
        let long = "a".repeat(62);
        for (name, spec, expected) in [
            ("web-0", json!({}), ("web-0", "", "web-0")),
            ("web-0", json!({"hostname": "db"}), ("db", "", "db")),
            ("web-0", json!({"subdomain": "s"}), ("web-0", "s.ns.svc.cluster.local", "web-0")),
            (
                "web-0",
                json!({"subdomain": "s", "setHostnameAsFQDN": true}),
                ("web-0", "s.ns.svc.cluster.local", "web-0.s.ns.svc.cluster.local"),
            ),
            ("web-0", json!({"setHostnameAsFQDN": true}), ("web-0", "", "web-0")),
            (
                "web-0",
                json!({"hostnameOverride": "a.b", "hostname": "x", "subdomain": "s"}),
                ("a.b", "", "a.b"),
            ),
            (&format!("{long}-bcd"), json!({}), (&long, "", &long)),
            (&format!("{long}.-bcd"), json!({}), (&long, "", &long)),
        ] {
            let (n, d, k) = parts(hostname(name, spec).unwrap());
            assert_eq!((n.as_str(), d.as_str(), k.as_str()), expected);
        }
    }

    #[test]
    fn bad_names_are_refused_with_their_field() {
        for (spec, expected) in [
            (json!({"hostname": "A"}), "pod Hostname \"A\" is not a valid DNS label"),
            (json!({"hostname": "a\nb"}), "pod Hostname \"a\\nb\" is not a valid DNS label"),
            (json!({"subdomain": "a.b"}), "pod Subdomain \"a.b\" is not a valid DNS label"),
            (
                json!({"hostnameOverride": "-"}),
                "pod HostnameOverride \"-\" is not a valid DNS subdomain",
            ),
        ] {
            assert_eq!(hostname("p", spec).unwrap_err(), expected);
        }
        let fqdn = json!({"subdomain": "s".repeat(60), "setHostnameAsFQDN": true});
        let error = hostname("p", fqdn).unwrap_err();
        assert!(error.contains("is too long (64 characters is the max, 83"), "{error}");
    }
}
