//! Rules for the small kinds: config maps, secrets, leases, endpoints, nodes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::names;
use crate::failure::Cause;
use crate::object::ObjectExt;
use crate::resource::Kind;

const MAX_DATA_BYTES: usize = 1 << 20;
const MAX_ENDPOINTS: usize = 1000;

/// Moves a secret's `stringData` into `data`.
pub(crate) fn merge_string_data(secret: &mut Value) {
    let Some(Value::Object(plain)) = secret.take_out("/stringData") else { return };
    for (key, value) in plain {
        if !secret.has("/data") {
            secret.put("/data", json!({}));
        }
        if let Some(data) = secret["data"].as_object_mut() {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
        }
    }
}

/// Keys and size of config maps and secrets.
pub(crate) fn check_data(object: &Value, causes: &mut Vec<Cause>) {
    const KEY_RULE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' \
         or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
         '[-._a-zA-Z0-9]+')";
    let mut bytes = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object.map(&format!("/{field}")).into_iter().flatten() {
            bytes += value.as_str().map_or(0, str::len);
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let good = (1..=253).contains(&key.len()) && key.chars().all(plain);
            if !good || key == "." || key.starts_with("..") {
                causes.push(Cause::invalid(format!("{field}[{key}]"), &json!(key), KEY_RULE));
            }
            if field == "binaryData" && object.map("/data").is_some_and(|d| d.contains_key(key)) {
                causes.push(Cause::invalid(
                    format!("data[{key}]"),
                    &json!(key),
                    "duplicate of key present in binaryData",
                ));
            }
        }
    }
    // Secrets and binary data are base64, four characters for three bytes.
    if bytes > MAX_DATA_BYTES * 4 / 3 {
        causes.push(Cause::invalid("data", &json!(bytes), "must have at most 1048576 bytes"));
    }
}

/// Keys that a secret of a well-known type must have.
pub(crate) fn check_secret_type(secret: &Value, causes: &mut Vec<Cause>) {
    let needed: &[&str] = match secret.text("/type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if !secret.map("/data").is_some_and(|data| data.contains_key(*key)) {
            causes.push(Cause::required(format!("data[{key}]"), ""));
        }
    }
}

/// Immutable objects and the type of a secret.
pub(crate) fn check_data_update(
    kind: Kind,
    (current, wanted): (&Value, &Value),
    causes: &mut Vec<Cause>,
) {
    if kind == Kind::Secret && current.text("/type") != wanted.text("/type") {
        causes.push(Cause::invalid("type", &json!(wanted.text("/type")), "field is immutable"));
    }
    if !current.flag("/immutable") {
        return;
    }
    if !wanted.flag("/immutable") {
        causes.push(Cause::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in ["data", "binaryData"] {
        let changed = current.get(field) != wanted.get(field);
        if changed {
            causes.push(Cause::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}

/// A lease's numbers.
pub(crate) fn check_lease(lease: &Value, causes: &mut Vec<Cause>) {
    if let Some(seconds) = lease.int("/spec/leaseDurationSeconds").filter(|n| *n <= 0) {
        let detail = "must be greater than 0";
        causes.push(Cause::invalid("spec.leaseDurationSeconds", &json!(seconds), detail));
    }
    if let Some(count) = lease.int("/spec/leaseTransitions").filter(|n| *n < 0) {
        let detail = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.leaseTransitions", &json!(count), detail));
    }
}

/// Ports of endpoints are TCP unless they say otherwise.
pub(crate) fn default_endpoints(endpoints: &mut Value) {
    for subset in endpoints.list_mut("/subsets") {
        for port in subset.list_mut("/ports") {
            port.default_to("/protocol", "TCP");
        }
    }
}

/// Ports of slices are TCP and have a name, possibly an empty one.
pub(crate) fn default_slice(slice: &mut Value) {
    for port in slice.list_mut("/ports") {
        port.default_to("/protocol", "TCP");
        port.default_to("/name", "");
    }
}

fn check_ip(field: String, text: &str, causes: &mut Vec<Cause>) {
    if text.parse::<std::net::IpAddr>().is_err() {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        causes.push(Cause::invalid(field, &json!(text), detail));
    }
}

/// Addresses of endpoints.
pub(crate) fn check_endpoints(endpoints: &Value, causes: &mut Vec<Cause>) {
    for (index, subset) in endpoints.list("/subsets").iter().enumerate() {
        for list in ["addresses", "notReadyAddresses"] {
            for (at, address) in subset.list(&format!("/{list}")).iter().enumerate() {
                let field = format!("subsets[{index}].{list}[{at}].ip");
                check_ip(field, address.text("/ip"), causes);
            }
        }
        for (at, port) in subset.list("/ports").iter().enumerate() {
            check_port(format!("subsets[{index}].ports[{at}].port"), port.int("/port"), causes);
        }
    }
}

/// A port number that must be there and in range.
pub(crate) fn check_port(field: String, port: Option<i64>, causes: &mut Vec<Cause>) {
    match port {
        Some(1..=65535) => {}
        Some(other) => causes.push(Cause::invalid(
            field,
            &json!(other),
            "must be between 1 and 65535, inclusive",
        )),
        None => causes.push(Cause::required(field, "")),
    }
}

/// Addresses and ports of endpoint slices.
pub(crate) fn check_slice(slice: &Value, causes: &mut Vec<Cause>) {
    let family = slice.text("/addressType");
    if !matches!(family, "IPv4" | "IPv6" | "FQDN") {
        let allowed = ["FQDN", "IPv4", "IPv6"];
        causes.push(match family {
            "" => Cause::required("addressType", ""),
            other => Cause::unsupported("addressType", &json!(other), &allowed),
        });
    }
    let endpoints = slice.list("/endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        causes.push(Cause::invalid(
            "endpoints",
            &json!(endpoints.len()),
            "must have at most 1000 items",
        ));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let addresses = endpoint.list("/addresses");
        if addresses.is_empty() {
            causes.push(Cause::required(
                format!("endpoints[{index}].addresses"),
                "must contain at least 1 address",
            ));
        }
        for (at, address) in addresses.iter().enumerate() {
            let field = format!("endpoints[{index}].addresses[{at}]");
            match family {
                "IPv4" | "IPv6" => check_ip(field, address.as_str().unwrap_or_default(), causes),
                _ if !names::is_subdomain(address.as_str().unwrap_or_default()) => {
                    causes.push(Cause::invalid(field, address, "must be a DNS name"));
                }
                _ => {}
            }
        }
    }
}

/// What of a node may not change once it is set.
pub(crate) fn check_node_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    for field in ["podCIDR", "podCIDRs", "providerID"] {
        let pointer = format!("/spec/{field}");
        let changed =
            current.has(&pointer) && current.pointer(&pointer) != wanted.pointer(&pointer);
        if changed {
            causes.push(Cause::forbidden(
                format!("spec.{field}"),
                "node updates may not change it once it is set",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"stringData": {"a": "x"}, "data": {"b": "eQ=="}});
        merge_string_data(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "eA==", "b": "eQ=="}}));
    }

    #[test]
    fn an_immutable_config_map_keeps_its_data_and_its_flag() {
        let current = json!({"immutable": true, "data": {"a": "1"}});
        let mut causes = Vec::new();
        check_data_update(Kind::ConfigMap, (&current, &json!({"data": {"a": "2"}})), &mut causes);
        assert_eq!(causes.len(), 2);
    }

    #[test]
    fn a_tls_secret_has_a_key_and_a_certificate() {
        let mut causes = Vec::new();
        check_secret_type(
            &json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            &mut causes,
        );
        assert_eq!(causes, [Cause::required("data[tls.key]", "")]);
    }

    #[test]
    fn keys_that_leave_the_volume_are_refused() {
        let mut causes = Vec::new();
        check_data(&json!({"data": {"..": "", "a/b": "", "ok.txt": ""}}), &mut causes);
        assert_eq!(causes.len(), 2);
    }
}
