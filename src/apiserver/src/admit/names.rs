//! Names: DNS labels, subdomains, service names, and the rules for object metadata.

use serde_json::{Map, Value, json};

use crate::failure::Cause;
use crate::object::ObjectExt;
use crate::resource::{Kind, Resource};
use crate::selector::label;

const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case \
     alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character \
     (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric \
     characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  \
     or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SERVICE_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters \
     or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. \
     'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// How many bytes the annotations of an object may have.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;

/// Whether a text is an RFC 1123 label.
pub(crate) fn is_label(text: &str) -> bool {
    let outer = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(|c| outer(c) || c == '-')
        && text.starts_with(outer)
        && text.ends_with(outer)
}

/// Whether a text is an RFC 1123 subdomain.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|part| part.len() <= 253 && is_long_label(part))
}

/// A label without the length limit, as the parts of a subdomain have none of their own.
fn is_long_label(text: &str) -> bool {
    let outer = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.chars().all(|c| outer(c) || c == '-') && text.starts_with(outer) && text.ends_with(outer)
}

/// Why a name may not be the name of an object of a kind.
pub(crate) fn name_problem(kind: Kind, name: &str) -> Option<&'static str> {
    match kind {
        Kind::Namespace => (!is_label(name)).then_some(LABEL_RULE),
        Kind::Service => {
            let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
            (!is_label(name) || !starts_well).then_some(SERVICE_RULE)
        }
        // The signer's parts and a name.
        Kind::ClusterTrustBundle => (!name.split(':').all(is_subdomain)).then_some(SUBDOMAIN_RULE),
        _ => (!is_subdomain(name)).then_some(SUBDOMAIN_RULE),
    }
}

/// An RFC 1123 label that must be there: the name of a container, a volume, a handler.
pub(crate) fn check_label(field: &str, value: &str, causes: &mut Vec<Cause>) {
    if value.is_empty() {
        causes.push(Cause::required(field, ""));
        return;
    }
    if value.len() > 63 {
        causes.push(Cause::invalid(field, &json!(value), "must be no more than 63 bytes"));
    }
    if !is_long_label(value) {
        let rule = if is_subdomain(value) { "must not contain dots" } else { LABEL_RULE };
        causes.push(Cause::invalid(field, &json!(value), rule));
    }
}

/// Whether a text names a port: letters, digits and dashes, at least one letter, at most 15.
pub(crate) fn is_port_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && text.contains(|c: char| c.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

/// Checks the metadata of an object that is about to be stored.
pub(crate) fn check_metadata(resource: &Resource, object: &Value, causes: &mut Vec<Cause>) {
    let name = object.name();
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Some(problem) = name_problem(resource.kind, name) {
        causes.push(Cause::invalid("metadata.name", &json!(name), problem));
    }
    check_labels("metadata.labels", object.map("/metadata/labels"), causes);
    check_annotations("metadata.annotations", object, causes);
    for (index, finalizer) in object.list("/metadata/finalizers").iter().enumerate() {
        let text = finalizer.as_str().unwrap_or_default();
        if !label::is_qualified_name(text) {
            let field = format!("metadata.finalizers[{index}]");
            causes.push(Cause::invalid(field, finalizer, label::NAME_RULE));
        }
    }
}

/// Checks the keys and values of labels, or of a selector made of them.
pub(crate) fn check_labels(
    field: &str,
    labels: Option<&Map<String, Value>>,
    causes: &mut Vec<Cause>,
) {
    for (key, value) in labels.into_iter().flatten() {
        if !label::is_qualified_name(key) {
            causes.push(Cause::invalid(field, &json!(key), label::NAME_RULE));
        }
        if let Some(problem) = label_value_problem(value.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(field, value, problem));
        }
    }
}

/// Why a text may not be the value of a label.
pub(crate) fn label_value_problem(text: &str) -> Option<&'static str> {
    match label::is_label_value(text) {
        _ if text.len() > 63 => Some("must be no more than 63 characters"),
        true => None,
        false => Some(label::VALUE_RULE),
    }
}

/// Checks the annotations of an object, or of a template, at a field.
pub(crate) fn check_annotations(field: &str, object: &Value, causes: &mut Vec<Cause>) {
    let mut bytes = 0;
    for (key, value) in object.map("/metadata/annotations").into_iter().flatten() {
        if !label::is_qualified_name(&key.to_lowercase()) {
            causes.push(Cause::invalid(field, &json!(key), label::NAME_RULE));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > MAX_ANNOTATION_BYTES {
        causes.push(Cause::invalid(field, &json!(bytes), "may not be more than 262144 bytes"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_their_kind() {
        assert!(name_problem(Kind::Pod, "web.0-a").is_none());
        for bad in ["", "Web", "-a", "a-", "a..b", "a_b", "é"] {
            assert!(name_problem(Kind::Pod, bad).is_some(), "{bad}");
        }
        assert!(name_problem(Kind::Service, "1a").is_some());
        assert!(name_problem(Kind::Namespace, "a.b").is_some());
        assert!(name_problem(Kind::ConfigMap, &"a".repeat(254)).is_some());
    }

    #[test]
    fn port_names_have_a_letter_and_no_double_dash() {
        assert!(is_port_name("http-2"));
        for bad in ["", "80", "a--b", "-a", "abcdefghijklmnop"] {
            assert!(!is_port_name(bad), "{bad}");
        }
    }
}
