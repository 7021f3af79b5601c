//! `/etc/hosts`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::HostAlias;

use crate::container_config::PodHostname;

const OWN_ENTRIES: &str = "# Kubernetes-managed hosts file.\n\
    127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";

/// The hosts file of a pod with its own network.
pub fn pod_hosts(pod_ips: &[IpAddr], hostname: &PodHostname, aliases: &[HostAlias]) -> String {
    let name = &hostname.name;
    let names = match hostname.domain.as_str() {
        "" => name.clone(),
        domain => format!("{name}.{domain}\t{name}"),
    };
    let own: String = pod_ips.iter().map(|ip| format!("{ip}\t{names}\n")).collect();
    format!("{OWN_ENTRIES}{own}{}", alias_entries(aliases))
}

/// The hosts file of a host-network pod: the node's, with the pod's aliases.
pub fn host_network_hosts(node_hosts: &str, aliases: &[HostAlias]) -> String {
    let entries = alias_entries(aliases);
    format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}{entries}")
}

/// Lines of `hostAliases`. Line breaks and other control characters in them are dropped: no value
/// may add a line of its own.
fn alias_entries(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let clean = |text: &str| text.replace(|c: char| c.is_control(), "");
    let line = |alias: &HostAlias| {
        let names: Vec<_> = alias.hostnames.iter().flatten().map(|n| clean(n)).collect();
        format!("{}\t{}\n", clean(&alias.ip), names.join("\t"))
    };
    let lines: String = aliases.iter().map(line).collect();
    format!("\n# Entries added by HostAliases.\n{lines}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hostname(domain: &str) -> PodHostname {
        PodHostname { name: "web".into(), domain: domain.into(), kernel_name: "web".into() }
    }

    fn alias(ip: &str, names: &[&str]) -> HostAlias {
        HostAlias {
            ip: ip.into(),
            hostnames: Some(names.iter().map(|n| (*n).to_owned()).collect()),
        }
    }

    #[test]
    fn a_pods_file_has_its_addresses_and_aliases() {
        let ips = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let text = pod_hosts(&ips, &hostname(""), &[alias("1.2.3.4", &["foo", "bar"])]);
        let expected = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
            ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
            fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n\
            10.0.0.2\tweb\nfd00::2\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\tfoo\tbar\n";
        assert_eq!(text, expected);
        let with_domain = pod_hosts(&ips[..1], &hostname("s.ns.svc.c"), &[]);
        assert!(with_domain.ends_with("\n10.0.0.2\tweb.s.ns.svc.c\tweb\n"));
    }

    #[test]
    fn a_host_network_pod_gets_the_nodes_file() {
        let text = host_network_hosts("127.0.0.1 n1\n", &[alias("1.2.3.4", &["x\n6.6.6.6 evil"])]);
        let expected = "# Kubernetes-managed hosts file (host network).\n127.0.0.1 n1\n\n\
            # Entries added by HostAliases.\n1.2.3.4\tx6.6.6.6 evil\n";
        assert_eq!(text, expected);
    }
}
