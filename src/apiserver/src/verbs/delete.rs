//! delete and deletecollection: grace periods, preconditions, finalizers.

use std::sync::Arc;

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::body::{self, Body};
use super::read;
use crate::admit;
use crate::api::Api;
use crate::failure::Failure;
use crate::http::answer::{self, Answer};
use crate::http::form;
use crate::http::handle::{Call, rendered};
use crate::http::query::Query;
use crate::http::route::Target;
use crate::object::{ObjectExt, stamp};
use crate::resource::{Kind, Resource};
use crate::store::Tx;

/// Namespaces that may not be deleted.
const KEPT: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// What a client wants of a deletion.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Seconds for the pod to end; none takes the pod's own.
    pub grace_seconds: Option<i64>,
    /// The object must have this UID.
    pub uid: Option<String>,
    /// The object must have this resource version.
    pub resource_version: Option<String>,
    /// Nothing is to be stored.
    pub dry: bool,
}

impl Options {
    /// Reads options from the body, or from the query where there is no body.
    ///
    /// # Errors
    /// 400 when they are malformed.
    pub(crate) fn of(query: &Query, body: &Body) -> Result<Self, Failure> {
        let mut options = Self { dry: body::dry_run(query)?, ..Self::default() };
        if let Some(seconds) = query.number("gracePeriodSeconds")? {
            options.grace_seconds = Some(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        check_propagation(query.text("propagationPolicy"))?;
        if body.bytes.is_empty() {
            return Ok(options);
        }
        let value = body::parse(body)?.value;
        if !matches!(value.text("/kind"), "" | "DeleteOptions") {
            return Err(Failure::bad_request(format!(
                "the body of a deletion must be DeleteOptions, not {}",
                value.text("/kind")
            )));
        }
        options.grace_seconds = value.int("/gracePeriodSeconds").or(options.grace_seconds);
        if options.grace_seconds.is_some_and(|seconds| seconds < 0) {
            // Upstream reads a negative period as the smallest one.
            options.grace_seconds = Some(1);
        }
        let text = |pointer| {
            let text = value.text(pointer);
            (!text.is_empty()).then(|| text.to_owned())
        };
        options.uid = text("/preconditions/uid");
        options.resource_version = text("/preconditions/resourceVersion");
        options.dry |= value.list("/dryRun").iter().any(|one| one == "All");
        check_propagation(value.text("/propagationPolicy"))?;
        Ok(options)
    }
}

fn check_propagation(policy: &str) -> Result<(), Failure> {
    match policy {
        "" | "Background" | "Foreground" | "Orphan" => Ok(()),
        other => Err(Failure::bad_request(format!(
            "DeleteOptions.propagationPolicy: Unsupported value: {other:?}: supported values: \
             \"Background\", \"Foreground\", \"Orphan\", \"nil\""
        ))),
    }
}

/// What became of an object.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// It is gone; its last form.
    Gone(Arc<Value>),
    /// It is marked and waits for its finalizers, or for the node.
    Marked(Arc<Value>),
}

/// Deletes one object.
///
/// # Errors
/// 400, 403, 404, 409.
pub(crate) async fn one(
    api: &Api,
    target: &Target,
    (call, body): (&Call, &Body),
) -> Result<Answer, Failure> {
    let options = Options::of(&call.query, body)?;
    let (identity, place) = (call.identity.clone(), target.clone());
    let outcome = api
        .store
        .write(move |tx| {
            let missing = || Failure::not_found(place.resource, &place.name);
            let current = tx.get(&place.key()).ok_or_else(missing)?;
            admit::check_writer(&identity, place.resource, &current)?;
            remove(tx, (place.resource, &current), &options)
        })
        .await?;
    Ok(match outcome {
        Outcome::Gone(object) if !returns_object(target.resource.kind) => {
            answer::json(StatusCode::OK, &success(target.resource, &object))
        }
        Outcome::Gone(object) | Outcome::Marked(object) => {
            rendered(call, target, (StatusCode::OK, &object))
        }
    })
}

fn returns_object(kind: Kind) -> bool {
    matches!(kind, Kind::Pod | Kind::Service | Kind::Namespace | Kind::ServiceAccount)
}

fn success(resource: &Resource, object: &Value) -> Value {
    let mut details = json!({
        "name": object.name(), "kind": resource.plural, "uid": object.uid(),
    });
    if !resource.group.is_empty() {
        details["group"] = resource.group.into();
    }
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    })
}

/// Deletes all selected objects of a collection.
///
/// # Errors
/// 400 for malformed parameters.
pub(crate) async fn collection(
    api: &Api,
    target: &Target,
    (call, body): (&Call, &Body),
) -> Result<Answer, Failure> {
    let options = Options::of(&call.query, body)?;
    let selector = read::selector(target, &call.query)?;
    let (resource, prefix) = (target.resource, target.resource.prefix(&target.namespace));
    let (deleted, revision) = api
        .store
        .write(move |tx| {
            let mut deleted = Vec::new();
            for (_, object) in tx.list(&prefix) {
                if selector.matches(&object) {
                    deleted.push(match remove(tx, (resource, &object), &options)? {
                        Outcome::Gone(last) => last,
                        Outcome::Marked(marked) => marked,
                    });
                }
            }
            Ok((deleted, tx.revision()))
        })
        .await?;
    let metadata = json!({"resourceVersion": revision.to_string()});
    let items = deleted.iter().map(AsRef::as_ref);
    Ok(answer::json(StatusCode::OK, &form::many(call.form, resource, (metadata, items))))
}

/// Deletes an object in a transaction: at once, or by marking it.
///
/// # Errors
/// 409 when a precondition does not hold.
pub(crate) fn remove(
    tx: &mut Tx<'_>,
    (resource, current): (&'static Resource, &Value),
    options: &Options,
) -> Result<Outcome, Failure> {
    check_preconditions(resource, current, options)?;
    if resource.kind == Kind::Namespace && KEPT.contains(&current.name()) {
        let why = "this namespace may not be deleted";
        return Err(Failure::forbidden(resource, current.name(), why));
    }
    if resource.kind == Kind::PriorityClass && admit::priority::is_system_class(current.name()) {
        let why = "this is a system priority class and cannot be deleted";
        return Err(Failure::forbidden(resource, current.name(), why));
    }
    let grace = match resource.kind {
        Kind::Pod => pod_grace(current, options.grace_seconds),
        _ => 0,
    };
    let has_finalizers = !current.list("/metadata/finalizers").is_empty()
        || (resource.kind == Kind::Namespace && !current.list("/spec/finalizers").is_empty());
    let key = resource.key(current.namespace(), current.name());
    if grace == 0 && !has_finalizers {
        if options.dry {
            return Ok(Outcome::Gone(Arc::new(current.clone())));
        }
        let missing = || Failure::not_found(resource, current.name());
        return tx.remove(&key).map(Outcome::Gone).ok_or_else(missing);
    }
    let mut marked = current.clone();
    mark(resource, &mut marked, grace);
    if options.dry || marked == *current {
        return Ok(Outcome::Marked(Arc::new(marked)));
    }
    Ok(Outcome::Marked(tx.put(&key, marked)))
}

fn check_preconditions(
    resource: &Resource,
    current: &Value,
    options: &Options,
) -> Result<(), Failure> {
    let checks = [
        ("UID", options.uid.as_deref(), current.uid()),
        (
            "ResourceVersion",
            options.resource_version.as_deref(),
            current.text("/metadata/resourceVersion"),
        ),
    ];
    for (what, wanted, found) in checks {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            return Err(Failure::conflict(
                resource,
                current.name(),
                &format!(
                    "Precondition failed: {what} in precondition: {wanted}, {what} in object \
                     meta: {found}"
                ),
            ));
        }
    }
    Ok(())
}

/// How long a pod may take to end: nothing to wait for when no node runs it.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let unbound = pod.text("/spec/nodeName").is_empty();
    let finished = matches!(pod.text("/status/phase"), "Succeeded" | "Failed");
    if unbound || finished {
        return 0;
    }
    let own = pod.int("/spec/terminationGracePeriodSeconds").unwrap_or(30);
    asked.unwrap_or(own).max(0)
}

/// Sets the deletion mark; a second deletion may only shorten the wait.
pub(crate) fn mark(resource: &Resource, object: &mut Value, grace: i64) {
    if object.is_terminating() {
        let before = object.int("/metadata/deletionGracePeriodSeconds").unwrap_or(0);
        if grace >= before {
            return;
        }
    }
    let at = Timestamp::now() + jiff::SignedDuration::from_secs(grace.min(1 << 30));
    object.put("/metadata/deletionTimestamp", stamp(at));
    object.put("/metadata/deletionGracePeriodSeconds", grace);
    match resource.kind {
        Kind::Namespace => object.put("/status/phase", "Terminating"),
        Kind::Pod => {
            let generation = object.int("/metadata/generation").unwrap_or(0);
            object.put("/metadata/generation", generation + 1);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_pod_is_waited_for() {
        let bound = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 7}});
        assert_eq!(pod_grace(&bound, None), 7);
        assert_eq!(pod_grace(&bound, Some(0)), 0);
        assert_eq!(pod_grace(&json!({"spec": {}}), Some(9)), 0);
        let done = json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}});
        assert_eq!(pod_grace(&done, Some(9)), 0);
    }

    #[test]
    fn a_second_deletion_only_shortens_the_wait() {
        let pods = crate::resource::of(Kind::Pod);
        let mut pod = json!({"metadata": {}});
        mark(pods, &mut pod, 10);
        let first = pod.clone();
        mark(pods, &mut pod, 30);
        assert_eq!(pod, first);
        mark(pods, &mut pod, 1);
        assert_eq!(pod.int("/metadata/deletionGracePeriodSeconds"), Some(1));
    }
}
