//! serviceaccounts/token: a TokenRequest becomes a signed token, bound to a pod, Secret or node where
//! it asks for that.

use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::body::{self, Body};
use crate::api::Api;
use crate::failure::{Cause, Failure};
use crate::http::access::Identity;
use crate::http::answer::{self, Answer};
use crate::http::handle::Call;
use crate::http::route::Target;
use crate::object::{ObjectExt, stamp};
use crate::resource::{Kind, key, of};
use crate::tokens::{self, Claims};

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

/// Issues a token for a service account.
///
/// # Errors
/// 400, 403, 404, 409, 422.
pub(crate) fn issue(
    api: &Api,
    target: &Target,
    (call, body): (&Call, &Body),
) -> Result<Answer, Failure> {
    let mut request = body::parse(body)?.value;
    let missing = || Failure::not_found(target.resource, &target.name);
    let account = api.store.get(&target.key()).ok_or_else(missing)?;
    let seconds = match request.int("/spec/expirationSeconds") {
        None | Some(0) => DEFAULT_SECONDS,
        Some(seconds) => seconds,
    };
    check_lifetime(target, seconds)?;
    let bound = bound_object(api, (target, &account), &request)?;
    let node = bound
        .as_ref()
        .filter(|(kind, _)| *kind == "pod")
        .and_then(|(_, pod)| api.store.get(&key(Kind::Node, "", pod.text("/spec/nodeName"))));
    check_node(&call.identity, target, &bound)?;
    let mut audiences = tokens::texts(&request, "/spec/audiences");
    audiences.retain(|audience| !audience.is_empty());
    if audiences.is_empty() {
        audiences.push(tokens::ISSUER.to_owned());
    }
    let now = Timestamp::now().as_second();
    let claims = Claims {
        account: &account,
        bound: bound.as_ref().map(|(kind, object)| (*kind, &**object)),
        node: node.as_deref(),
        audiences: &audiences,
        now,
        seconds,
    };
    let token = api.signer.sign(&claims.to_value());
    let token = token.ok_or_else(|| Failure::internal("no randomness to sign a token with"))?;
    let until = Timestamp::from_second(now.saturating_add(seconds)).map_err(Failure::internal)?;
    request.put("/apiVersion", "authentication.k8s.io/v1");
    request.put("/kind", "TokenRequest");
    request.put("/metadata", json!({
        "name": target.name, "namespace": target.namespace, "creationTimestamp": stamp(Timestamp::now()),
    }));
    request.put("/spec/audiences", audiences);
    request.put("/spec/expirationSeconds", seconds);
    request.default_to("/spec/boundObjectRef", Value::Null);
    request.put("/status", json!({"token": token, "expirationTimestamp": stamp(until)}));
    Ok(answer::json(StatusCode::CREATED, &request))
}

fn check_lifetime(target: &Target, seconds: i64) -> Result<(), Failure> {
    let why = match seconds {
        ..MIN_SECONDS => "may not specify a duration less than 10 minutes",
        MIN_SECONDS..=MAX_SECONDS => return Ok(()),
        _ => "may not specify a duration larger than 2^32 seconds",
    };
    let cause = Cause::invalid("spec.expirationSeconds", &json!(seconds), why);
    Err(Failure::invalid(target.resource, &target.name, &[cause]))
}

type Bound = Option<(&'static str, std::sync::Arc<Value>)>;

/// The object that the token is to end with.
fn bound_object(
    api: &Api,
    (target, account): (&Target, &Value),
    request: &Value,
) -> Result<Bound, Failure> {
    if !request.has("/spec/boundObjectRef") {
        return Ok(None);
    }
    let reference = |field: &str| request.text(&format!("/spec/boundObjectRef/{field}"));
    let (kind, claim, namespace) = match (reference("apiVersion"), reference("kind")) {
        ("v1", "Pod") => (Kind::Pod, "pod", account.namespace()),
        ("v1", "Secret") => (Kind::Secret, "secret", account.namespace()),
        ("v1", "Node") => (Kind::Node, "node", ""),
        (version, kind) => {
            let what = format!("cannot bind token to object of type {version}, Kind={kind}");
            return Err(Failure::bad_request(what));
        }
    };
    let name = reference("name");
    let missing = || Failure::not_found(of(kind), name);
    let object = api.store.get(&key(kind, namespace, name)).ok_or_else(missing)?;
    if kind == Kind::Pod && object.text("/spec/serviceAccountName") != account.name() {
        return Err(Failure::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount \
             name.",
            account.name()
        )));
    }
    let uid = reference("uid");
    if !uid.is_empty() && uid != object.uid() {
        return Err(Failure::conflict(
            target.resource,
            &target.name,
            &format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The \
                 object might have been deleted and then recreated"
            ),
        ));
    }
    Ok(Some((claim, object)))
}

/// A node asks for tokens of the pods that are its own, and of no others.
fn check_node(identity: &Identity, target: &Target, bound: &Bound) -> Result<(), Failure> {
    let Some(node) = identity.node().filter(|_| !identity.is_master()) else { return Ok(()) };
    let why = match bound {
        Some(("pod", pod)) if pod.text("/spec/nodeName") == node => return Ok(()),
        Some(("pod", _)) => "node requested token bound to a pod scheduled on a different node",
        _ => "node requested token not bound to a pod",
    };
    Err(Failure::forbidden(target.resource, &target.name, why))
}
