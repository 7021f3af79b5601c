//! `/etc/resolv.conf` from `dnsPolicy` and `dnsConfig`.
//!
//! Serves the pod DNS rules with their limits: 3 name servers, 32 search domains of together 2048
//! characters. What was left out is told in a [`DnsNotice`], which becomes an event.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;
const MAX_DOMAIN_CHARACTERS: usize = 253;

/// How names are looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Domains to try.
    pub searches: Vec<String>,
    /// Options, `name` or `name:value`.
    pub options: Vec<String>,
}

/// The node's DNS settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsSettings {
    /// The cluster's name servers.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain; empty for none.
    pub cluster_domain: String,
    /// The node's own settings; absent when the node is configured without (`resolvConf: ""`).
    pub node: Option<ResolvConf>,
}

/// Something about a pod's DNS that its owner should know: an event of type Warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsNotice {
    /// The event's reason.
    pub reason: &'static str,
    /// The event's message.
    pub message: String,
}

impl ResolvConf {
    /// Reads a `resolv.conf`; what cannot be read is passed over.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().map(str::to_owned)),
                // The last line counts; a dot alone stands for no domain.
                Some("search") => {
                    let undotted = |w: &str| w.strip_suffix('.').unwrap_or(w).to_owned();
                    conf.searches = words.filter(|w| *w != ".").map(undotted).collect();
                }
                Some("options") => {
                    words.for_each(|word| set_option(&mut conf.options, word.to_owned()));
                }
                _ => {}
            }
        }
        conf
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let clean = |word: &String| word.replace(|c: char| c.is_control() || c == ' ', "");
        let words = |list: &[String]| list.iter().map(clean).collect::<Vec<_>>().join(" ");
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", words(&self.searches)));
        }
        for server in &self.servers {
            text.push_str(&format!("nameserver {}\n", clean(server)));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", words(&self.options)));
        }
        text
    }
}

/// Works out a pod's DNS settings.
pub fn resolv_conf(pod: &Pod, settings: &DnsSettings) -> (ResolvConf, Vec<DnsNotice>) {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let mut notices = Vec::new();
    let wants_cluster = match policy {
        "None" | "Default" => false,
        "ClusterFirst" => !host_network,
        _ => true,
    };
    let mut conf = match policy {
        "None" => ResolvConf::default(),
        _ if wants_cluster && !settings.cluster_dns.is_empty() => {
            cluster_first(namespace, settings)
        }
        _ => {
            if wants_cluster {
                notices.push(missing_cluster_dns(pod));
            }
            node_settings(settings)
        }
    };
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        append(&mut conf, config);
    }
    hold_to_limits(&mut conf, &mut notices);
    (conf, notices)
}

fn missing_cluster_dns(pod: &Pod) -> DnsNotice {
    let of = |field: &Option<String>| field.clone().unwrap_or_default();
    let metadata = &pod.metadata;
    let (name, namespace, uid) = (of(&metadata.name), of(&metadata.namespace), of(&metadata.uid));
    let message = format!(
        "pod: \"{name}_{namespace}({uid})\". kubelet does not have ClusterDNS IP configured and \
         cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy."
    );
    DnsNotice { reason: "MissingClusterDNS", message }
}

fn cluster_first(namespace: &str, settings: &DnsSettings) -> ResolvConf {
    let domain = &settings.cluster_domain;
    let mut searches = match domain.as_str() {
        "" => Vec::new(),
        _ => vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()],
    };
    searches.extend(settings.node.iter().flat_map(|node| node.searches.clone()));
    ResolvConf {
        servers: settings.cluster_dns.iter().map(IpAddr::to_string).collect(),
        searches: without_repeats(searches),
        options: vec!["ndots:5".to_owned()],
    }
}

fn node_settings(settings: &DnsSettings) -> ResolvConf {
    settings.node.clone().unwrap_or_else(|| ResolvConf {
        servers: vec!["127.0.0.1".to_owned()],
        searches: vec![".".to_owned()],
        options: Vec::new(),
    })
}

fn append(conf: &mut ResolvConf, config: &PodDNSConfig) {
    let servers = config.nameservers.iter().flatten().cloned();
    let searches = config.searches.iter().flatten().cloned();
    conf.servers = without_repeats(conf.servers.drain(..).chain(servers).collect());
    conf.searches = without_repeats(conf.searches.drain(..).chain(searches).collect());
    for option in config.options.iter().flatten() {
        let Some(name) = option.name.clone() else { continue };
        let value = option.value.as_deref().filter(|value| !value.is_empty());
        let text = value.map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
        set_option(&mut conf.options, text);
    }
}

fn set_option(options: &mut Vec<String>, text: String) {
    let name = |option: &str| option.split(':').next().map(str::to_owned);
    match options.iter_mut().find(|present| name(present) == name(&text)) {
        Some(present) => *present = text,
        None => options.push(text),
    }
}

fn without_repeats(words: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(words.len());
    for word in words {
        if !kept.contains(&word) {
            kept.push(word);
        }
    }
    kept
}

fn hold_to_limits(conf: &mut ResolvConf, notices: &mut Vec<DnsNotice>) {
    let mut notice = |message: String| {
        notices.push(DnsNotice { reason: "DNSConfigForming", message });
    };
    if conf.servers.len() > MAX_SERVERS {
        conf.servers.truncate(MAX_SERVERS);
        notice(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied \
             nameserver line is: {}",
            conf.servers.join(" ")
        ));
    }
    let before = conf.searches.len();
    conf.searches.truncate(MAX_SEARCHES);
    conf.searches.retain(|domain| domain.len() <= MAX_DOMAIN_CHARACTERS);
    while conf.searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        conf.searches.pop();
    }
    if conf.searches.len() < before {
        notice(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied \
             search line is: {}",
            conf.searches.join(" ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings() -> DnsSettings {
        DnsSettings {
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            node: Some(ResolvConf::parse(
                "# comment\nnameserver 192.0.2.53\nsearch old\nsearch corp.example. svc.cluster.local\noptions timeout:1\n",
            )),
        }
    }

    fn render(spec: serde_json::Value, settings: &DnsSettings) -> (String, Vec<&'static str>) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let pod = json!({"metadata": {"namespace": "ns"}, "spec": spec});
        let (conf, notices) = resolv_conf(&serde_json::from_value(pod).unwrap(), settings);
        (conf.render(), notices.iter().map(|n| n.reason).collect())
    }

    #[test]
    fn of_a_nodes_file_the_last_domains_and_all_options_count() {
        let conf = ResolvConf::parse(
            "search old\noptions ndots:1 debug\nsearch . corp.example.\noptions edns0 ndots:3\nsearch\n",
        );
        assert_eq!((conf.searches.len(), conf.options), (0, words("ndots:3 debug edns0")));
        let none = ResolvConf::parse("nameserver 127.0.0.53\nsearch .\n");
        assert_eq!(none.render(), "nameserver 127.0.0.53\n");
        assert_eq!(ResolvConf::parse("search . a b.\n").searches, words("a b"));
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn policies_follow_the_table() {
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
            nameserver 10.96.0.10\noptions ndots:5\n";
        let node =
            "search corp.example svc.cluster.local\nnameserver 192.0.2.53\noptions timeout:1\n";
        for (spec, expected) in [
            (json!({}), cluster),
            (json!({"dnsPolicy": "ClusterFirst"}), cluster),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), node),
            (json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), cluster),
            (json!({"dnsPolicy": "Default"}), node),
            (json!({"dnsPolicy": "None"}), ""),
            (
                json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a"], "options": [{"name": "debug"}]}}),
                "search a\nnameserver 1.1.1.1\noptions debug\n",
            ),
        ] {
            assert_eq!(render(spec, &settings()), (expected.to_owned(), vec![]));
        }
    }

    #[test]
    fn the_pods_config_adds_and_overrides() {
        let config = json!({"dnsConfig": {
            "nameservers": ["10.96.0.10", "1.1.1.1"], "searches": ["cluster.local", "x"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
        }});
        let expected = "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example x\n\
            nameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0\n";
        assert_eq!(render(config, &settings()).0, expected);
    }

    #[test]
    fn limits_cut_and_say_so() {
        let many: Vec<_> = (0..40).map(|n| format!("d{n}")).collect();
        let config = json!({"dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"], "searches": many,
        }});
        let (text, notices) = render(config, &settings());
        assert_eq!(notices, ["DNSConfigForming", "DNSConfigForming"]);
        assert_eq!(text.matches("nameserver").count(), 3);
        assert!(text.contains(" d31\n") && !text.contains("d32"));
        let long = json!({"dnsPolicy": "None", "dnsConfig": {"searches": ["a".repeat(254), "b"]}});
        assert_eq!(render(long, &settings()).0, "search b\n");
    }

    #[test]
    fn without_cluster_dns_the_node_serves_and_the_owner_hears_of_it() {
        let bare = DnsSettings::default();
        let (text, notices) = render(json!({}), &bare);
        assert_eq!(text, "search .\nnameserver 127.0.0.1\n");
        assert_eq!(notices, ["MissingClusterDNS"]);
    }

    #[test]
    fn no_value_can_add_a_line() {
        let config =
            json!({"dnsPolicy": "None", "dnsConfig": {"searches": ["a\nnameserver 6.6.6.6"]}});
        assert_eq!(render(config, &settings()).0, "search anameserver6.6.6.6\n");
    }
}
