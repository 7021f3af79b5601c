//! The census of this network namespace: links, addresses, routes, rules, neighbours, nftables,
//! connection tracking.
//!
//! Owns asking `ip`, `nft` and `conntrack` and dropping from their answers what changes by itself
//! (indexes, handles, counters, timers).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::Scope;

/// Links by name, kind and bridge, and the forwarding entries that were put there by hand.
pub(super) fn links(_: &Scope) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for link in ask_json("ip", &["-j", "-d", "link", "show"])? {
        let mut text = word(&link, "ifname");
        let kind = link.pointer("/linkinfo/info_kind").and_then(Value::as_str);
        text.extend([" ", kind.unwrap_or("device")]);
        for (key, value) in [("master", word(&link, "master")), ("alias", word(&link, "ifalias"))] {
            if !value.is_empty() {
                text.extend([" ", key, " ", &value]);
            }
        }
        found.insert(text);
    }
    for entry in ask_json("bridge", &["-j", "fdb", "show"])? {
        let by_hand = word(&entry, "state") == "permanent" && entry.get("dst").is_some();
        if by_hand {
            let (mac, dst, link) =
                (word(&entry, "mac"), word(&entry, "dst"), word(&entry, "ifname"));
            found.insert(format!("forwarding entry {mac} to {dst} on {link}"));
        }
    }
    Ok(found)
}

/// Addresses with their link.
pub(super) fn addresses(_: &Scope) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for link in ask_json("ip", &["-j", "address", "show"])? {
        for address in link.get("addr_info").and_then(Value::as_array).into_iter().flatten() {
            let length = address.get("prefixlen").map(Value::to_string).unwrap_or_default();
            let (local, link) = (word(address, "local"), word(&link, "ifname"));
            found.insert(format!("{local}/{length} on {link}"));
        }
    }
    Ok(found)
}

/// Routes of all tables.
pub(super) fn routes(_: &Scope) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for family in ["-4", "-6"] {
        for route in ask_json("ip", &["-j", family, "route", "show", "table", "all"])? {
            found.insert(steady(&route, &["flags", "expires", "used", "pref", "cache"]));
        }
    }
    Ok(found)
}

/// Routing rules.
pub(super) fn rules(_: &Scope) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for family in ["-4", "-6"] {
        for rule in ask_json("ip", &["-j", family, "rule", "show"])? {
            found.insert(format!("{family} {}", steady(&rule, &[])));
        }
    }
    Ok(found)
}

/// Neighbours that somebody wrote, and proxied ones; learned ones pass by themselves.
pub(super) fn neighbours(_: &Scope) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for request in [["nud", "permanent"].as_slice(), &["proxy"]] {
        let arguments: Vec<&str> = ["-j", "neigh", "show"].iter().chain(request).copied().collect();
        for entry in ask_json("ip", &arguments)? {
            let (dst, mac, link) =
                (word(&entry, "dst"), word(&entry, "lladdr"), word(&entry, "dev"));
            found.insert(format!("{} {dst} {mac} on {link}", request.join(" ")));
        }
    }
    Ok(found)
}

/// Every table, chain, rule, set and element.
pub(super) fn nft(_: &Scope) -> Result<BTreeSet<String>> {
    let text = ask("nft", &["-j", "list", "ruleset"])?;
    let mut answer: Value = serde_json::from_str(&text).context("read nft's answer")?;
    let mut found = BTreeSet::new();
    let Some(objects) = answer.get_mut("nftables").and_then(Value::as_array_mut) else {
        bail!("nft's answer has no ruleset");
    };
    for object in objects {
        let Some((kind, body)) = object.as_object_mut().and_then(|object| object.iter_mut().next())
        else {
            continue;
        };
        if kind == "metainfo" {
            continue;
        }
        settle(body);
        let name: Vec<String> = ["family", "table", "name", "chain"]
            .iter()
            .map(|key| word(body, key))
            .filter(|word| !word.is_empty())
            .collect();
        let name = format!("{kind} {}", name.join(" "));
        let elements = body.as_object_mut().and_then(|body| body.remove("elem"));
        for element in elements.as_ref().and_then(Value::as_array).into_iter().flatten() {
            found.insert(format!("element of {name}: {element}"));
        }
        found.insert(match kind.as_str() {
            "rule" => format!("{name}: {}", body.get("expr").unwrap_or(&Value::Null)),
            _ => name,
        });
    }
    Ok(found)
}

/// Tracked connections of the pods' addresses.
pub(super) fn conntrack(scope: &Scope) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    if scope.pod_networks.is_empty() {
        return Ok(found);
    }
    for family in ["ipv4", "ipv6"] {
        let text = ask("conntrack", &["-L", "-f", family])?;
        found.extend(text.lines().filter_map(|line| connection(line, scope)));
    }
    Ok(found)
}

/// Protocol, addresses and ports of a connection that has one of the pods' addresses.
fn connection(line: &str, scope: &Scope) -> Option<String> {
    let words: Vec<&str> = line
        .split_whitespace()
        .filter(|word| ["src=", "dst=", "sport=", "dport="].iter().any(|key| word.starts_with(key)))
        .collect();
    let addresses = words.iter().filter_map(|word| word.split_once('=')?.1.parse::<IpAddr>().ok());
    let ours =
        |address: IpAddr| scope.pod_networks.iter().any(|network| network.contains(&address));
    let protocol = line.split_whitespace().next()?;
    addresses.into_iter().any(ours).then(|| format!("{protocol} {}", words.join(" ")))
}

/// Removes what changes by itself, at any depth.
fn settle(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for key in ["handle", "expires", "packets", "bytes", "used"] {
                object.remove(key);
            }
            object.values_mut().for_each(settle);
        }
        Value::Array(array) => array.iter_mut().for_each(settle),
        _ => {}
    }
}

/// An object as text, without some of its keys.
fn steady(object: &Value, without: &[&str]) -> String {
    let empty = Map::new();
    let entries = object.as_object().unwrap_or(&empty).iter();
    let words =
        entries.filter(|(key, _)| !without.contains(&key.as_str())).map(
            |(key, value)| match value {
                Value::String(text) => format!("{key} {text}"),
                other => format!("{key} {other}"),
            },
        );
    words.collect::<Vec<_>>().join(" ")
}

fn word(object: &Value, key: &str) -> String {
    object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn ask_json(program: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let text = ask(program, arguments)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).with_context(|| format!("read the answer of {program}"))
}

fn ask(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program} (tests/setup/packages.sh installs it)"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed: {}", arguments.join(" "), complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counters_handles_and_timers_are_dropped_at_any_depth() {
        let mut value = json!({"handle": 4, "expr": [{"counter": {"packets": 1, "bytes": 2}}],
            "elem": [{"elem": {"val": "10.0.0.1", "expires": 7}}]});
        settle(&mut value);
        assert_eq!(
            value,
            json!({"expr": [{"counter": {}}], "elem": [{"elem": {"val": "10.0.0.1"}}]})
        );
    }

    #[test]
    fn a_connection_counts_if_either_way_has_a_pod_address() {
        let pods = Scope { pod_networks: vec!["10.1.0.0/24".parse().unwrap()], ..Scope::default() };
        let line = "tcp 6 431 ESTABLISHED src=1.2.3.4 dst=9.9.9.9 sport=5 dport=80 \
            src=10.1.0.7 dst=1.2.3.4 sport=80 dport=5 [ASSURED] mark=0 use=1";
        let found = connection(line, &pods).unwrap();
        assert!(found.starts_with("tcp src=1.2.3.4") && !found.contains("use"), "{found}");
        assert_eq!(connection("udp 17 2 src=1.1.1.1 dst=2.2.2.2", &pods), None);
    }
}
