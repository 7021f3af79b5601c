//! From foreign JSON to canonical objects: typed decoding with the API's own structs, finding
//! fields that do not exist (field validation), and the text `json:`-like decode errors.
//! Defaults and rules are not decided here (`admit`).

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::admit::quantity;

/// A value of the wrong type for its field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub(crate) struct Mistyped {
    path: String,
    problem: String,
}

/// Decodes into the typed struct and encodes again, so that only known fields remain.
pub(crate) fn canonical<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, Mistyped> {
    let typed: T = serde_path_to_error::deserialize(value)
        .map_err(|e| Mistyped { path: e.path().to_string(), problem: e.inner().to_string() })?;
    serde_json::to_value(typed)
        .map_err(|e| Mistyped { path: String::from("."), problem: e.to_string() })
}

/// The paths in `given` that `kept` has not: fields that the typed struct does not know.
/// Nulls are left out, since the struct cannot tell them from absent fields.
pub(crate) fn unknown_fields(given: &Value, kept: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect_unknown(given, kept, &mut String::new(), &mut found);
    found
}

fn collect_unknown(given: &Value, kept: &Value, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given.iter().filter(|(_, value)| !value.is_null()) {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
                match kept.get(key) {
                    Some(same) => collect_unknown(value, same, path, found),
                    None => found.push(path.clone()),
                }
                path.truncate(length);
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (index, (value, same)) in given.iter().zip(kept).enumerate() {
                path.push_str(&format!("[{index}]"));
                collect_unknown(value, same, path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Writes quantities in their canonical text; numbers are accepted for them.
pub(crate) fn quantities_to_text(object: &mut Value) {
    match object {
        Value::Object(map) => {
            for (key, value) in map {
                match key.as_str() {
                    // Of a limit range a list.
                    "limits" if value.is_array() => quantities_to_text(value),
                    "limits" | "requests" | "capacity" | "allocatable" | "podFixed"
                    | "allocatedResources" => stringify_members(value),
                    "max" | "min" | "default" | "defaultRequest" | "maxLimitRequestRatio" => {
                        stringify_members(value);
                    }
                    // Of a pod amounts, of a runtime class where the amounts are.
                    "overhead" => {
                        stringify_members(value);
                        quantities_to_text(value);
                    }
                    "sizeLimit" | "divisor" => stringify(value),
                    // Free-form maps of users: nothing in them is ours.
                    "data" | "stringData" | "binaryData" | "labels" | "annotations" => {}
                    _ => quantities_to_text(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quantities_to_text),
        _ => {}
    }
}

fn stringify_members(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(stringify);
    }
}

fn stringify(value: &mut Value) {
    if let Value::Number(number) = value {
        *value = Value::String(number.to_string());
    }
    // What is no quantity stays as it is, for validation to name.
    if let Value::String(text) = value
        && let Some(canonical) = quantity::canonical(text)
    {
        *text = canonical;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec})
    }

    #[test]
    fn an_unknown_field_is_named_by_its_path() {
        let given = pod(json!({"containers": [{"name": "a", "imag": "b"}], "foo": 1, "bar": null}));
        let kept = canonical::<Pod>(&given).unwrap();
        assert_eq!(unknown_fields(&given, &kept), ["spec.containers[0].imag", "spec.foo"]);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_by_its_path() {
        let given = pod(json!({"containers": [{"name": 5}]}));
        let error = canonical::<Pod>(&given).unwrap_err();
        assert!(error.to_string().starts_with("spec.containers[0].name: "), "{error}");
    }

    #[test]
    fn the_overhead_of_a_class_and_of_a_pod_is_in_canonical_text() {
        let mut given = json!({"overhead": {"podFixed": {"cpu": 0.5, "memory": "1024Mi"}},
            "spec": {"overhead": {"cpu": 1}}});
        quantities_to_text(&mut given);
        let fixed = json!({"podFixed": {"cpu": "500m", "memory": "1Gi"}});
        assert_eq!(given, json!({"overhead": fixed, "spec": {"overhead": {"cpu": "1"}}}));
    }

    #[test]
    fn numbers_are_accepted_where_quantities_are() {
        let mut given = pod(json!({"containers": [{"name": "a",
            "resources": {"limits": {"cpu": 1}, "requests": {"cpu": 0.5}}}]}));
        quantities_to_text(&mut given);
        let kept = canonical::<Pod>(&given).unwrap();
        assert_eq!(kept["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1");
        assert_eq!(kept["spec"]["containers"][0]["resources"]["requests"]["cpu"], "500m");
    }
}
