//! Events: the two API groups' views of one object, and what an event must have.

use serde_json::{Value, json};

use crate::failure::Cause;
use crate::object::ObjectExt;

/// Field names that differ: core, `events.k8s.io`.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The `events.k8s.io` view of a core event.
pub(crate) fn from_core(event: &Value) -> Value {
    renamed(event, |(core, new)| (*core, *new))
}

/// The core form of an `events.k8s.io` event.
pub(crate) fn to_core(event: &Value) -> Value {
    let mut core = renamed(event, |(core, new)| (*new, *core));
    core.default_to("/involvedObject", json!({}));
    crate::resource::of(crate::resource::Kind::Event).stamp(&mut core);
    core
}

fn renamed(
    event: &Value,
    direction: impl Fn(&(&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let Value::Object(fields) = event else { return event.clone() };
    let rename = |key: &String| {
        let found = NAMES.iter().map(&direction).find(|(from, _)| from == key);
        found.map_or_else(|| key.clone(), |(_, to)| to.to_owned())
    };
    Value::Object(fields.iter().map(|(key, value)| (rename(key), value.clone())).collect())
}

/// Checks an event: it must be in the namespace of what it is about.
pub(crate) fn check(event: &Value, causes: &mut Vec<Cause>) {
    let about = event.text("/involvedObject/namespace");
    let namespace = event.namespace();
    // Events of cluster-scoped objects live in the default namespace.
    let fits = if about.is_empty() { namespace == "default" } else { about == namespace };
    if !fits {
        causes.push(Cause::invalid(
            "involvedObject.namespace",
            &json!(about),
            "does not match event.namespace",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_event_comes_back_from_the_other_group() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"name": "x"}, "message": "m", "count": 2,
            "reportingComponent": "kubelet", "reason": "Started"});
        let new = from_core(&core);
        assert_eq!(new.text("/note"), "m");
        assert_eq!(new.text("/regarding/name"), "x");
        assert_eq!(to_core(&new), core);
    }

    #[test]
    fn an_event_belongs_in_the_namespace_of_its_object() {
        let mut causes = Vec::new();
        check(
            &json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}}),
            &mut causes,
        );
        assert_eq!(causes.len(), 1);
        causes.clear();
        check(
            &json!({"metadata": {"namespace": "default"}, "involvedObject": {"kind": "Node"}}),
            &mut causes,
        );
        assert!(causes.is_empty());
    }
}
