//! Strategic merge patch: like a merge patch, but lists that the schema marks merge by key, and
//! directives (`$patch`, `$retainKeys`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`) steer
//! it (Kubernetes community doc "Strategic Merge Patch"). The schema is the OpenAPI one that is
//! also given to clients, so both sides merge alike.

use serde_json::{Map, Value};

use super::Error;
use crate::schema::Shape;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Applies a patch to an object of a shape.
///
/// # Errors
/// When a directive is malformed or a list element lacks its merge key.
pub(crate) fn apply(object: &Value, patch: &Value, shape: Shape) -> Result<Value, Error> {
    let Value::Object(patch) = patch else {
        return Err(Error::Malformed("a strategic merge patch is an object".into()));
    };
    let empty = Map::new();
    merge_maps(object.as_object().unwrap_or(&empty), patch, shape).map(Value::Object)
}

fn malformed(what: impl Into<String>) -> Error {
    Error::Malformed(what.into())
}

fn merge_maps(
    original: &Map<String, Value>,
    patch: &Map<String, Value>,
    shape: Shape,
) -> Result<Map<String, Value>, Error> {
    match patch.get(PATCH).map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => {
            let mut replaced = patch.clone();
            replaced.remove(PATCH);
            return Ok(replaced);
        }
        Some(Some("delete")) => return Ok(Map::new()),
        Some(other) => {
            return Err(malformed(format!("unrecognized patch type {}", other.unwrap_or("?"))));
        }
    }
    let mut merged = original.clone();
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        retain_keys(&mut merged, patch, keep)?;
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            delete_from(&mut merged, field, value)?;
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        if value.is_null() {
            merged.remove(key);
            continue;
        }
        let before = merged.get(key).unwrap_or(&Value::Null);
        let after = merge_values(before, value, shape.field(key))?;
        merged.insert(key.clone(), after);
    }
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(SET_ORDER) {
            set_order(&mut merged, original, (field, order), shape.field(field))?;
        }
    }
    Ok(merged)
}

fn merge_values(before: &Value, patch: &Value, shape: Shape) -> Result<Value, Error> {
    match patch {
        Value::Object(patch) => {
            let empty = Map::new();
            let before = before.as_object().unwrap_or(&empty);
            merge_maps(before, patch, shape).map(Value::Object)
        }
        Value::Array(patch) if shape.merges() => {
            let before = before.as_array().map(Vec::as_slice).unwrap_or_default();
            match shape.merge_key() {
                Some(key) => merge_lists(before, patch, (key, shape.items())),
                None => Ok(union(before, patch)),
            }
        }
        other => Ok(other.clone()),
    }
}

/// Lists of scalars: what is new is appended.
fn union(before: &[Value], patch: &[Value]) -> Value {
    let mut all = before.to_vec();
    for value in patch {
        if !all.contains(value) {
            all.push(value.clone());
        }
    }
    Value::Array(all)
}

fn merge_lists(
    before: &[Value],
    patch: &[Value],
    (key, items): (&str, Shape),
) -> Result<Value, Error> {
    let directive = |item: &Value| item.get(PATCH).and_then(Value::as_str).map(str::to_owned);
    let replaces = patch.iter().any(|item| directive(item).as_deref() == Some("replace"));
    let mut merged = if replaces { Vec::new() } else { before.to_vec() };
    for item in patch {
        let Value::Object(members) = item else {
            return Err(malformed("a list of objects may only be patched with objects"));
        };
        if members.get(PATCH).and_then(Value::as_str) == Some("replace") && members.len() == 1 {
            continue;
        }
        let id = members.get(key).ok_or_else(|| {
            malformed(format!("map: {item} does not contain declared merge key: {key}"))
        })?;
        let place = merged.iter().position(|one| one.get(key) == Some(id));
        match (directive(item).as_deref(), place) {
            (Some("delete"), _) => merged.retain(|one| one.get(key) != Some(id)),
            (_, Some(place)) => {
                merged[place] = merge_values(&merged[place], item, items)?;
            }
            (_, None) => merged.push(merge_values(&Value::Null, item, items)?),
        }
    }
    Ok(Value::Array(merged))
}

fn retain_keys(
    merged: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keep: &Value,
) -> Result<(), Error> {
    let keep: Vec<&str> = keep
        .as_array()
        .and_then(|keep| keep.iter().map(Value::as_str).collect())
        .ok_or_else(|| malformed("$retainKeys must be a list of field names"))?;
    let set = patch.iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null());
    if let Some((stray, _)) = set.into_iter().find(|(key, _)| !keep.contains(&key.as_str())) {
        return Err(malformed(format!("field {stray:?} is patched but not in $retainKeys")));
    }
    merged.retain(|key, _| keep.contains(&key.as_str()));
    Ok(())
}

fn delete_from(merged: &mut Map<String, Value>, field: &str, gone: &Value) -> Result<(), Error> {
    let gone =
        gone.as_array().ok_or_else(|| malformed(format!("{DELETE_FROM}{field} must be a list")))?;
    if let Some(Value::Array(list)) = merged.get_mut(field) {
        list.retain(|value| !gone.contains(value));
    }
    Ok(())
}

/// Orders a merged list: elements that the client names come in its order; the others stay where
/// they were relative to their former neighbours.
fn set_order(
    merged: &mut Map<String, Value>,
    original: &Map<String, Value>,
    (field, order): (&str, &Value),
    shape: Shape,
) -> Result<(), Error> {
    let order =
        order.as_array().ok_or_else(|| malformed(format!("{SET_ORDER}{field} must be a list")))?;
    let Some(Value::Array(list)) = merged.get_mut(field) else { return Ok(()) };
    let id = |value: &Value| match shape.merge_key() {
        Some(key) => value.get(key).cloned().unwrap_or(Value::Null),
        None => value.clone(),
    };
    let wanted: Vec<Value> = order.iter().map(&id).collect();
    let former: Vec<Value> = original
        .get(field)
        .and_then(Value::as_array)
        .map(|list| list.iter().map(&id).collect())
        .unwrap_or_default();
    let place = |ids: &[Value], value: &Value| ids.iter().position(|one| *one == id(value));

    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        std::mem::take(list).into_iter().partition(|value| wanted.contains(&id(value)));
    named.sort_by_key(|value| place(&wanted, value));
    others.sort_by_key(|value| place(&former, value));

    let mut named = named.into_iter().peekable();
    let mut others = others.into_iter().peekable();
    loop {
        let from_others = match (others.peek(), named.peek()) {
            (Some(other), Some(one)) => match (place(&former, other), place(&former, one)) {
                (Some(left), Some(right)) => left < right,
                _ => false,
            },
            (Some(_), None) => true,
            (None, _) => false,
        };
        match if from_others { others.next() } else { named.next() } {
            Some(value) => list.push(value),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Kind, of};
    use proptest::prelude::*;
    use serde_json::json;

    fn patch_spec(spec: Value, patch: Value) -> Value {
        let object = json!({"spec": spec});
        let shape = Shape::of(of(Kind::Pod));
        apply(&object, &json!({"spec": patch}), shape).unwrap()["spec"].clone()
    }

    #[test]
    fn containers_merge_by_name_and_their_ports_by_number() {
        let spec = json!({"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80}]},
            {"name": "b", "image": "1"}]});
        let patched = patch_spec(
            spec,
            json!({"containers": [
            {"name": "a", "image": "2", "ports": [{"containerPort": 81}]}, {"name": "c"}]}),
        );
        assert_eq!(
            patched,
            json!({"containers": [
            {"name": "a", "image": "2", "ports": [{"containerPort": 80}, {"containerPort": 81}]},
            {"name": "b", "image": "1"}, {"name": "c"}]})
        );
    }

    #[test]
    fn directives_delete_replace_and_order() {
        let spec = || json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
        let names = |spec: Value| -> Vec<String> {
            let list = spec["containers"].as_array().unwrap().clone();
            list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
        };
        let deleted =
            patch_spec(spec(), json!({"containers": [{"name": "b", "$patch": "delete"}]}));
        assert_eq!(names(deleted), ["a", "c"]);
        let replaced =
            patch_spec(spec(), json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}));
        assert_eq!(names(replaced), ["z"]);
        let ordered = patch_spec(
            spec(),
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "d"}, {"name": "a"}],
                "containers": [{"name": "d"}]}),
        );
        assert_eq!(names(ordered), ["b", "c", "d", "a"]);
    }

    #[test]
    fn retain_keys_clears_the_other_volume_source() {
        let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        let patched = patch_spec(
            spec,
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"],
            "hostPath": {"path": "/x"}}]}),
        );
        assert_eq!(patched, json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}));
    }

    #[test]
    fn finalizers_are_a_set() {
        let object = json!({"metadata": {"finalizers": ["a/1", "b/2"]}});
        let patch = json!({"metadata": {"finalizers": ["c/3"],
            "$deleteFromPrimitiveList/finalizers": ["a/1"]}});
        let patched = apply(&object, &patch, Shape::of(of(Kind::Pod))).unwrap();
        assert_eq!(patched["metadata"]["finalizers"], json!(["b/2", "c/3"]));
    }

    #[test]
    fn an_element_without_its_merge_key_is_refused() {
        let patch = json!({"spec": {"containers": [{"image": "x"}]}});
        assert!(apply(&json!({}), &patch, Shape::of(of(Kind::Pod))).is_err());
    }

    fn env() -> impl Strategy<Value = Vec<Value>> {
        prop::collection::btree_map("[a-e]", "[xyz]", 0..5).prop_shuffle_values()
    }

    trait ShuffleValues: Strategy<Value = std::collections::BTreeMap<String, String>> + Sized {
        fn prop_shuffle_values(self) -> impl Strategy<Value = Vec<Value>> {
            self.prop_map(|map| {
                map.into_iter()
                    .map(|(name, value)| json!({"name": name, "value": value}))
                    .collect::<Vec<_>>()
            })
            .prop_shuffle()
        }
    }
    impl<S: Strategy<Value = std::collections::BTreeMap<String, String>>> ShuffleValues for S {}

    /// The patch a client makes from the list it applied last (`a`) and the one it wants (`b`).
    fn diff(a: &[Value], b: &[Value]) -> Value {
        let names =
            |list: &[Value]| -> Vec<Value> { list.iter().map(|e| e["name"].clone()).collect() };
        let mut items: Vec<Value> = b.iter().filter(|e| !a.contains(e)).cloned().collect();
        for gone in names(a).into_iter().filter(|n| !names(b).contains(n)) {
            items.push(json!({"name": gone, "$patch": "delete"}));
        }
        let order: Vec<Value> = names(b).into_iter().map(|name| json!({"name": name})).collect();
        json!({"$setElementOrder/env": order, "env": items})
    }

    proptest! {
        #[test]
        fn applying_a_difference_gives_the_target(a in env(), b in env()) {
            let container = |env: Value| json!({"spec": {"containers": [{"name": "c", "env": env}]}});
            let mut patch = diff(&a, &b);
            patch["name"] = json!("c");
            let patch = json!({"spec": {"containers": [patch]}});
            let patched = apply(&container(json!(a)), &patch, Shape::of(of(Kind::Pod))).unwrap();
            prop_assert_eq!(patched, container(json!(b)));
        }
    }
}
