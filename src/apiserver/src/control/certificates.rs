//! Certificate signing requests: those of nodes are approved without a person where RBAC says so,
//! approved ones are signed, and old ones are removed (kube-controller-manager's three controllers).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::admit::signing::asker;
use crate::api::Api;
use crate::failure::Failure;
use crate::object::{ObjectExt, parse_stamp, stamp};
use crate::pki::Authority;
use crate::rbac::{self, Asked};
use crate::resource::{Kind, prefix};
use crate::signing::{Request, Signer, approved_by};
use crate::store::Store;

/// How long an answered request is kept.
const ANSWERED_SECONDS: i64 = 3600;
/// How long a request without an answer is kept.
const PENDING_SECONDS: i64 = 24 * 3600;

/// What is to happen to a request.
enum Step {
    Write(Value),
    Remove,
}

/// Answers what can be answered.
///
/// # Errors
/// When the store fails.
pub(super) async fn reconcile(api: &Api) -> Result<(), Failure> {
    let now = Timestamp::now();
    for (key, request) in api.store.list(&prefix(Kind::CertificateSigningRequest, "")).items {
        let Some(step) = step(&api.store, &api.authority, (&request, now)) else { continue };
        let read = request.text("/metadata/resourceVersion").to_owned();
        api.store
            .write(move |tx| {
                // Somebody was faster: their change fires this loop again.
                let same =
                    tx.get(&key).is_some_and(|one| one.text("/metadata/resourceVersion") == read);
                match step {
                    _ if !same => {}
                    Step::Write(next) => {
                        tx.put(&key, next);
                    }
                    Step::Remove => {
                        tx.remove(&key);
                    }
                }
                Ok(())
            })
            .await?;
    }
    Ok(())
}

fn step(store: &Store, authority: &Authority, (request, now): (&Value, Timestamp)) -> Option<Step> {
    let has = |verdict: &str| {
        request.list("/status/conditions").iter().any(|one| one.text("/type") == verdict)
    };
    let issued = !request.text("/status/certificate").is_empty();
    let answered = issued || has("Denied") || has("Failed");
    let made = parse_stamp(request.text("/metadata/creationTimestamp"))?;
    let kept = if answered { ANSWERED_SECONDS } else { PENDING_SECONDS };
    if now.as_second() - made.as_second() > kept {
        return Some(Step::Remove);
    }
    if answered {
        return None;
    }
    let signer = Signer::of(request.text("/spec/signerName"))?;
    let usages: Vec<String> = request
        .list("/spec/usages")
        .iter()
        .filter_map(|usage| usage.as_str().map(str::to_owned))
        .collect();
    let parsed = Request::of_object(request).ok();
    let verdict = parsed.as_ref().map(|parsed| signer.check(parsed, &usages));
    match (has("Approved"), parsed.zip(verdict)) {
        // A person looks at what breaks a rule, and at what serves.
        (false, Some((parsed, Ok(())))) if signer == Signer::NodeClient => {
            let who = asker(request);
            let subresource = approved_by(&parsed, &who);
            let asked = Asked {
                verb: "create",
                group: "certificates.k8s.io",
                resource: "certificatesigningrequests",
                subresource,
                ..Asked::default()
            };
            (who.is_master() || rbac::allows(store, &who, &asked)).then(|| {
                let message =
                    "Auto approving kubelet client certificate after SubjectAccessReview.";
                Step::Write(judged(request, ("Approved", "AutoApproved", message), now))
            })
        }
        (false, _) => None,
        (true, Some((parsed, Ok(())))) => {
            let seconds = request.int("/spec/expirationSeconds");
            Some(Step::Write(match authority.sign(&parsed, signer, seconds) {
                Ok(pem) => {
                    let mut next = request.clone();
                    next.put("/status/certificate", STANDARD.encode(pem));
                    tracing::info!(
                        request = request.name(),
                        user = request.text("/spec/username"),
                        "certificate issued"
                    );
                    next
                }
                Err(error) => {
                    let message = format!("the certificate could not be signed: {error}");
                    judged(request, ("Failed", "SigningError", &message), now)
                }
            }))
        }
        (true, Some((_, Err(refused)))) => Some(Step::Write(judged(
            request,
            ("Failed", "SignerValidationFailure", &refused.to_string()),
            now,
        ))),
        (true, None) => Some(Step::Write(judged(
            request,
            ("Failed", "SignerValidationFailure", "the request cannot be read"),
            now,
        ))),
    }
}

/// The request with one more condition.
fn judged(
    request: &Value,
    (verdict, reason, message): (&str, &str, &str),
    now: Timestamp,
) -> Value {
    let mut next = request.clone();
    let mut conditions = request.list("/status/conditions").to_vec();
    conditions.push(json!({
        "type": verdict, "status": "True", "reason": reason, "message": message,
        "lastUpdateTime": stamp(now), "lastTransitionTime": stamp(now),
    }));
    next.put("/status/conditions", conditions);
    next
}
