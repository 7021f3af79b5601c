//! Field selectors: `a=b`, `a==b`, `a!=b` separated by commas, over the fields each kind offers.

use serde_json::Value;

use super::Malformed;
use crate::resource::Kind;

/// A conjunction of requirements; an empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    pointer: &'static str,
    wanted: String,
    test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Equal,
    Different,
}

impl Selector {
    /// Parses a selector for a kind; an empty text selects everything.
    ///
    /// # Errors
    /// When the text breaks the grammar or names a field that the kind does not offer.
    pub(crate) fn parse(kind: Kind, text: &str) -> Result<Self, Malformed> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.trim().is_empty() {
                continue;
            }
            let (field, value, test) = split_operator(&term)
                .ok_or_else(|| Malformed::Field(text.to_owned(), term.clone()))?;
            let pointer = pointer_of(kind, field.trim())
                .ok_or_else(|| Malformed::UnknownField(field.trim().to_owned()))?;
            requirements.push(Requirement { pointer, wanted: unescape(value), test });
        }
        Ok(Self(requirements))
    }

    /// The value that the field at this pointer must have, where it must have one.
    pub(crate) fn demanded(&self, pointer: &str) -> Option<&str> {
        let found = self.0.iter().find(|one| one.pointer == pointer && one.test == Test::Equal);
        found.map(|one| one.wanted.as_str())
    }

    /// Whether every object is selected.
    pub(crate) fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object satisfies every requirement. An absent field reads as "".
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|requirement| {
            let equal = match object.pointer(requirement.pointer) {
                Some(Value::String(text)) => *text == requirement.wanted,
                Some(Value::Bool(flag)) => flag.to_string() == requirement.wanted,
                Some(Value::Number(number)) => number.to_string() == requirement.wanted,
                _ => match requirement.pointer {
                    "/spec/unschedulable" | "/spec/hostNetwork" => requirement.wanted == "false",
                    _ => requirement.wanted.is_empty(),
                },
            };
            equal == (requirement.test == Test::Equal)
        })
    }
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = terms.last_mut() {
            last.push(c);
        }
    }
    terms
}

fn split_operator(term: &str) -> Option<(&str, &str, Test)> {
    let at = term.find('=')?;
    if let Some(field) = term[..at].strip_suffix('!') {
        return Some((field, &term[at + 1..], Test::Different));
    }
    let value = &term[at + 1..];
    Some((&term[..at], value.strip_prefix('=').unwrap_or(value), Test::Equal))
}

fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    plain
}

fn pointer_of(kind: Kind, field: &str) -> Option<&'static str> {
    let pointer = match (kind, field) {
        (_, "metadata.name") => "/metadata/name",
        (Kind::Namespace, "name") => "/metadata/name",
        (Kind::Namespace, "status.phase") => "/status/phase",
        (Kind::Node, "spec.unschedulable") => "/spec/unschedulable",
        (Kind::Namespace | Kind::Node, _) => return None,
        (_, "metadata.namespace") => "/metadata/namespace",
        (Kind::CertificateSigningRequest | Kind::ClusterTrustBundle, "spec.signerName") => {
            "/spec/signerName"
        }
        (Kind::Pod, "spec.nodeName") => "/spec/nodeName",
        (Kind::Pod, "spec.restartPolicy") => "/spec/restartPolicy",
        (Kind::Pod, "spec.schedulerName") => "/spec/schedulerName",
        (Kind::Pod, "spec.serviceAccountName") => "/spec/serviceAccountName",
        (Kind::Pod, "spec.hostNetwork") => "/spec/hostNetwork",
        (Kind::Pod, "status.phase") => "/status/phase",
        (Kind::Pod, "status.podIP") => "/status/podIP",
        (Kind::Pod, "status.nominatedNodeName") => "/status/nominatedNodeName",
        (Kind::Secret, "type") => "/type",
        (Kind::Service, "spec.clusterIP") => "/spec/clusterIP",
        (Kind::Service, "spec.type") => "/spec/type",
        (Kind::Event, "involvedObject.kind" | "regarding.kind") => "/involvedObject/kind",
        (Kind::Event, "involvedObject.namespace" | "regarding.namespace") => {
            "/involvedObject/namespace"
        }
        (Kind::Event, "involvedObject.name" | "regarding.name") => "/involvedObject/name",
        (Kind::Event, "involvedObject.uid" | "regarding.uid") => "/involvedObject/uid",
        (Kind::Event, "involvedObject.apiVersion" | "regarding.apiVersion") => {
            "/involvedObject/apiVersion"
        }
        (Kind::Event, "involvedObject.resourceVersion" | "regarding.resourceVersion") => {
            "/involvedObject/resourceVersion"
        }
        (Kind::Event, "involvedObject.fieldPath" | "regarding.fieldPath") => {
            "/involvedObject/fieldPath"
        }
        (Kind::Event, "reason") => "/reason",
        (Kind::Event, "type") => "/type",
        (Kind::Event, "source") => "/source/component",
        (Kind::Event, "reportingComponent" | "reportingController") => "/reportingComponent",
        _ => return None,
    };
    Some(pointer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn pods_are_selected_by_node_and_phase() {
        let selector =
            Selector::parse(Kind::Pod, "spec.nodeName=n1,status.phase!=Succeeded").unwrap();
        assert!(selector.matches(&json!({"spec": {"nodeName": "n1"}})));
        let done = json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Succeeded"}});
        assert!(!selector.matches(&done));
        let unbound = Selector::parse(Kind::Pod, "spec.nodeName=").unwrap();
        assert!(unbound.matches(&json!({"spec": {}})));
    }

    #[test]
    fn a_field_the_kind_does_not_offer_is_refused() {
        let error = Selector::parse(Kind::Pod, "spec.foo=1").unwrap_err();
        assert_eq!(error.to_string(), "field label not supported: spec.foo");
        assert!(Selector::parse(Kind::Pod, "nonsense").is_err());
    }

    proptest! {
        #[test]
        fn an_escaped_value_is_found_again(value in "[a-z,=\\\\]{0,12}") {
            let escaped: String = value
                .chars()
                .flat_map(|c| match c {
                    ',' | '=' | '\\' => vec!['\\', c],
                    c => vec![c],
                })
                .collect();
            let selector = Selector::parse(Kind::Pod, &format!("metadata.name={escaped}")).unwrap();
            let object = json!({"metadata": {"name": value}});
            prop_assert!(selector.matches(&object));
        }
    }
}
