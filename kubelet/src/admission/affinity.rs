//! Node selectors and required node affinity.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
};

/// Whether a node has every label of the pod's `nodeSelector` and meets a term of its required
/// affinity.
pub fn matches_node(spec: &PodSpec, node: &Node) -> bool {
    let no_labels = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&no_labels);
    let mut wanted = spec.node_selector.iter().flatten();
    if !wanted.all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let required =
        spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()).and_then(
            |affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref(),
        );
    let Some(required) = required else { return true };
    matches_selector(required, node)
}

/// Whether a node meets a term of a selector.
pub fn matches_selector(selector: &NodeSelector, node: &Node) -> bool {
    let no_labels = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&no_labels);
    selector.node_selector_terms.iter().any(|term| matches_term(term, labels, node))
}

/// A term without any requirement matches nothing.
fn matches_term(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = node.metadata.name.as_deref();
    let field = |requirement: &NodeSelectorRequirement| match requirement.key.as_str() {
        "metadata.name" => matches(requirement, name),
        _ => false,
    };
    let label = |requirement: &NodeSelectorRequirement| {
        matches(requirement, labels.get(&requirement.key).map(String::as_str))
    };
    expressions.iter().all(label) && fields.iter().all(field)
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let named = value.is_some_and(|value| values.iter().any(|v| v == value));
    let numbers = || {
        let bound = values.first().filter(|_| values.len() == 1)?;
        Some((value?.parse::<i64>().ok()?, bound.parse::<i64>().ok()?))
    };
    match requirement.operator.as_str() {
        "In" => named,
        "NotIn" => !named,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": "n1", "labels": {"zone": "a", "size": "5"}}}),
        )
        .unwrap()
    }

    fn spec(value: serde_json::Value) -> PodSpec {
        let mut value = value;
        value["containers"] = json!([]);
        serde_json::from_value(value).unwrap()
    }

    fn with_terms(terms: serde_json::Value) -> PodSpec {
        spec(json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
        }}}))
    }

    #[test]
    fn selectors_need_every_label() {
        assert!(matches_node(&spec(json!({})), &node()));
        assert!(matches_node(&spec(json!({"nodeSelector": {"zone": "a"}})), &node()));
        assert!(!matches_node(&spec(json!({"nodeSelector": {"zone": "a", "x": "y"}})), &node()));
    }

    #[test]
    fn every_operator_has_its_meaning() {
        for (key, operator, values, expected) in [
            ("zone", "In", json!(["a", "b"]), true),
            ("zone", "In", json!(["b"]), false),
            ("none", "In", json!(["b"]), false),
            ("zone", "NotIn", json!(["b"]), true),
            ("none", "NotIn", json!(["b"]), true),
            ("zone", "NotIn", json!(["a"]), false),
            ("zone", "Exists", json!(null), true),
            ("none", "Exists", json!(null), false),
            ("none", "DoesNotExist", json!(null), true),
            ("size", "Gt", json!(["4"]), true),
            ("size", "Gt", json!(["5"]), false),
            ("size", "Lt", json!(["6"]), true),
            ("zone", "Lt", json!(["6"]), false),
            ("zone", "Near", json!(["a"]), false),
        ] {
            let terms = json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
            assert_eq!(matches_node(&with_terms(terms), &node()), expected, "{key} {operator}");
        }
    }

    #[test]
    fn terms_are_alternatives_and_empty_ones_match_nothing() {
        let miss =
            json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]});
        let hit =
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
        assert!(matches_node(&with_terms(json!([miss.clone(), hit])), &node()));
        assert!(!matches_node(&with_terms(json!([miss, {}])), &node()));
        assert!(!matches_node(&with_terms(json!([])), &node()));
    }
}
