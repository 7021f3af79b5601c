//! pods/binding and pods/eviction.

use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::body::{self, Body};
use super::delete::{self, Options};
use crate::admit;
use crate::api::Api;
use crate::failure::Failure;
use crate::http::answer::{self, Answer};
use crate::http::handle::Call;
use crate::http::route::Target;
use crate::object::{ObjectExt, stamp};
use crate::store::Tx;

/// Binds a pod to a node.
///
/// # Errors
/// 400, 404, 409 when it is bound already.
pub(crate) async fn bind(
    api: &Api,
    target: &Target,
    (call, body): (&Call, &Body),
) -> Result<Answer, Failure> {
    let dry = body::dry_run(&call.query)?;
    let binding = body::parse(body)?.value;
    let kind = binding.text("/target/kind");
    let node = binding.text("/target/name").to_owned();
    if !matches!(kind, "" | "Node") || node.is_empty() {
        return Err(Failure::bad_request("a binding's target must be a Node with a name"));
    }
    let place = target.clone();
    api.store
        .write(move |tx| {
            let missing = || Failure::not_found(place.resource, &place.name);
            let pod = tx.get(&place.key()).ok_or_else(missing)?;
            let bound = bound_to(&place, &pod, &node)?;
            if !dry {
                tx.put(&place.key(), bound);
            }
            Ok(())
        })
        .await?;
    Ok(answer::json(StatusCode::CREATED, &success()))
}

/// The pod as it is once a node has it.
///
/// # Errors
/// 409 when another node has it, or it is being deleted.
pub(crate) fn bound_to(target: &Target, pod: &Value, node: &str) -> Result<Value, Failure> {
    let conflict = |why: &str| Failure::conflict(target.resource, &target.name, why);
    if pod.is_terminating() {
        return Err(conflict(&format!(
            "pod {} is being deleted, cannot be assigned to a host",
            target.name
        )));
    }
    let now = pod.text("/spec/nodeName");
    if !now.is_empty() {
        return Err(conflict(&format!("pod {} is already assigned to node {now:?}", target.name)));
    }
    let mut bound = pod.clone();
    bound.put("/spec/nodeName", node);
    set_condition(&mut bound, json!({"type": "PodScheduled", "status": "True"}));
    Ok(bound)
}

/// Sets a condition, keeping the time of its last transition when its status stays.
/// Returns whether anything changed.
pub(crate) fn set_condition(object: &mut Value, mut condition: Value) -> bool {
    let kind = condition.text("/type").to_owned();
    let found = object.list("/status/conditions").iter().position(|one| one.text("/type") == kind);
    let before = found.map(|at| object["status"]["conditions"][at].clone());
    let unchanged = before.as_ref().filter(|one| one.text("/status") == condition.text("/status"));
    let since = match unchanged {
        Some(before) => before.text("/lastTransitionTime").to_owned(),
        None => stamp(Timestamp::now()),
    };
    condition.put("/lastTransitionTime", since);
    if object.pointer("/status/conditions").is_none_or(|list| !list.is_array()) {
        object.put("/status/conditions", json!([]));
    }
    match (found, before) {
        (Some(_), Some(before)) if before == condition => return false,
        (Some(at), _) => object["status"]["conditions"][at] = condition,
        (None, _) => {
            if let Some(list) = object["status"]["conditions"].as_array_mut() {
                list.push(condition);
            }
        }
    }
    true
}

/// Evicts a pod: a deletion with the options in the body. There are no disruption budgets.
///
/// # Errors
/// 400, 404, 409.
pub(crate) async fn evict(
    api: &Api,
    target: &Target,
    (call, body): (&Call, &Body),
) -> Result<Answer, Failure> {
    let eviction = body::parse(body)?.value;
    let options_body = Body {
        media_type: String::new(),
        bytes: eviction.get("deleteOptions").map(Value::to_string).unwrap_or_default().into(),
    };
    let mut options = Options::of(&call.query, &options_body)?;
    options.dry |= body::dry_run(&call.query)?;
    let (identity, place) = (call.identity.clone(), target.clone());
    api.store
        .write(move |tx: &mut Tx<'_>| {
            let missing = || Failure::not_found(place.resource, &place.name);
            let pod: Arc<Value> = tx.get(&place.key()).ok_or_else(missing)?;
            admit::check_writer(&identity, place.resource, &pod)?;
            delete::remove(tx, (place.resource, &pod), &options)
        })
        .await?;
    Ok(answer::json(StatusCode::CREATED, &success()))
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Kind;

    #[test]
    fn a_pod_is_bound_once() {
        let target = Target::of(Kind::Pod, "d", "x");
        let pod = json!({"metadata": {"name": "x"}, "spec": {}});
        let bound = bound_to(&target, &pod, "n1").unwrap();
        assert_eq!(bound.text("/spec/nodeName"), "n1");
        assert_eq!(bound.text("/status/conditions/0/type"), "PodScheduled");
        assert_eq!(bound_to(&target, &bound, "n2").unwrap_err().code(), 409);
    }

    #[test]
    fn an_unchanged_condition_keeps_its_time() {
        let condition = || json!({"type": "A", "status": "True"});
        assert!(set_condition(&mut json!({}), condition()));
        let mut pod = json!({"status": {"conditions": [
            {"type": "A", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
        assert!(!set_condition(&mut pod, condition()));
        assert!(set_condition(&mut pod, json!({"type": "A", "status": "False"})));
        assert_ne!(pod.text("/status/conditions/0/lastTransitionTime"), "2020-01-01T00:00:00Z");
    }
}
