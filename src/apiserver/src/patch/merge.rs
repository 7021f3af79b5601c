//! JSON merge patch (RFC 7386).

use serde_json::{Map, Value};

/// Applies a merge patch.
pub(crate) fn apply(object: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut merged = object.as_object().cloned().unwrap_or_else(Map::new);
    for (key, value) in patch {
        if value.is_null() {
            merged.remove(key);
        } else {
            let before = merged.get(key).unwrap_or(&Value::Null);
            let after = apply(before, value);
            merged.insert(key.clone(), after);
        }
    }
    Value::Object(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// The patch that makes `b` of `a`; neither may hold nulls.
    fn diff(a: &Value, b: &Value) -> Value {
        let (Value::Object(a), Value::Object(b)) = (a, b) else { return b.clone() };
        let mut patch = Map::new();
        for key in a.keys().filter(|key| !b.contains_key(*key)) {
            patch.insert(key.clone(), Value::Null);
        }
        for (key, value) in b.iter().filter(|(key, value)| a.get(*key) != Some(value)) {
            let before = a.get(key).filter(|before| before.is_object());
            patch.insert(key.clone(), diff(before.unwrap_or(&json!({})), value));
        }
        Value::Object(patch)
    }

    fn object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
            prop::collection::vec(any::<i8>(), 0..3).prop_map(Value::from),
        ];
        let members = leaf.prop_recursive(3, 16, 4, |inner| {
            prop::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        });
        prop::collection::btree_map("[a-d]", members, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn applying_a_difference_gives_the_target(a in object(), b in object()) {
            prop_assert_eq!(apply(&a, &diff(&a, &b)), b);
        }

        #[test]
        fn applying_twice_is_applying_once(a in object(), b in object()) {
            let once = apply(&a, &b);
            prop_assert_eq!(apply(&once, &b), once);
        }
    }

    #[test]
    fn the_examples_of_the_rfc_hold() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            assert_eq!(apply(&target, &patch), result);
        }
    }
}
