//! Rules for certificate signing requests: who asked is written by the server, what was asked does not
//! change, and approvals come by their own way.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Change;
use crate::failure::{Cause, Failure};
use crate::http::access::Identity;
use crate::object::{ObjectExt, stamp};
use crate::rbac::{self, Asked, Objects};
use crate::resource::{Kind, of};
use crate::signing::Request;

const GROUP: &str = "certificates.k8s.io";
/// The shortest validity that may be asked for.
const MIN_SECONDS: i64 = 600;

/// The usages that the API knows.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Writes who asks into a new request, whatever it says itself.
pub(crate) fn stamp_asker(identity: Option<&Identity>, object: &mut Value) {
    let Some(identity) = identity else { return };
    let mut groups = identity.groups.clone();
    if !groups.iter().any(|group| group == "system:authenticated") {
        groups.push("system:authenticated".to_owned());
    }
    object.put("/spec/username", identity.user.as_str());
    object.put("/spec/groups", groups);
    for field in ["uid", "extra"] {
        object.take_out(&format!("/spec/{field}"));
    }
}

/// Who asked, as it was written then.
pub(crate) fn asker(object: &Value) -> Identity {
    let groups = object.list("/spec/groups").iter();
    Identity {
        user: object.text("/spec/username").to_owned(),
        groups: groups.filter_map(|one| one.as_str().map(str::to_owned)).collect(),
    }
}

/// Checks a new request.
pub(super) fn check(object: &Value, causes: &mut Vec<Cause>) {
    if let Err(malformed) = Request::of_object(object) {
        let value = json!(object.text("/spec/request"));
        causes.push(Cause::invalid("spec.request", &value, &malformed.to_string()));
    }
    let usages = object.list("/spec/usages");
    if usages.is_empty() {
        causes.push(Cause::required("spec.usages", ""));
    }
    for usage in usages {
        if !usage.as_str().is_some_and(|usage| USAGES.contains(&usage)) {
            causes.push(Cause::unsupported("spec.usages", usage, &USAGES));
        }
    }
    let signer = object.text("/spec/signerName");
    match signer.split_once('/') {
        _ if signer.is_empty() => causes.push(Cause::required("spec.signerName", "")),
        Some((domain, path)) if domain.contains('.') && !path.is_empty() && signer.len() <= 571 => {
        }
        _ => causes.push(Cause::invalid(
            "spec.signerName",
            &json!(signer),
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        )),
    }
    if let Some(seconds) = object.int("/spec/expirationSeconds").filter(|s| *s < MIN_SECONDS) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid("spec.expirationSeconds", &json!(seconds), why));
    }
}

fn is_verdict(condition: &Value) -> bool {
    matches!(condition.text("/type"), "Approved" | "Denied")
}

/// Brings over what an update of this sort does not change: verdicts by any other way than
/// `approval`, all else by that.
pub(super) fn prepare_update(change: Change, current: &Value, wanted: &mut Value) {
    wanted.put("/spec", current["spec"].clone());
    if change == Change::Main {
        return;
    }
    let from = |object: &Value, verdicts: bool| -> Vec<Value> {
        let all = object.list("/status/conditions").iter();
        all.filter(|condition| is_verdict(condition) == verdicts).cloned().collect()
    };
    let (verdicts, others) = match change {
        Change::Approval => (from(wanted, true), from(current, false)),
        _ => (from(current, true), from(wanted, false)),
    };
    let mut conditions = [verdicts, others].concat();
    let now = stamp(Timestamp::now());
    for condition in &mut conditions {
        for field in ["lastTransitionTime", "lastUpdateTime"] {
            condition.default_to(&format!("/{field}"), now.as_str());
        }
    }
    if change == Change::Approval {
        let mut status = current.get("status").cloned().unwrap_or_else(|| json!({}));
        status.put("/conditions", conditions);
        wanted.put("/status", status);
    } else {
        wanted.put("/status/conditions", conditions);
    }
}

/// Checks a changed request against its former self.
pub(super) fn check_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let has = |object: &Value, verdict: &str| {
        object.list("/status/conditions").iter().any(|one| one.text("/type") == verdict)
    };
    if has(wanted, "Approved") && has(wanted, "Denied") {
        let why = "Approved and Denied conditions are mutually exclusive";
        causes.push(Cause::invalid("status.conditions", &json!(""), why));
    }
    for verdict in ["Approved", "Denied", "Failed"] {
        if has(current, verdict) && !has(wanted, verdict) {
            let why = format!("{verdict} conditions may not be removed");
            causes.push(Cause::forbidden("status.conditions", &why));
        }
    }
    for condition in wanted.list("/status/conditions").iter().filter(|one| is_verdict(one)) {
        if condition.text("/status") != "True" {
            let value = json!(condition.text("/status"));
            causes.push(Cause::unsupported("status.conditions.status", &value, &["True"]));
        }
    }
    let certificate = current.text("/status/certificate");
    if !certificate.is_empty() && certificate != wanted.text("/status/certificate") {
        let value = json!(wanted.text("/status/certificate"));
        causes.push(Cause::invalid("status.certificate", &value, "field is immutable"));
    }
}

/// Whether somebody may do this to a request of this signer: `approve` a change of verdicts, `sign` a
/// change of the status.
///
/// # Errors
/// 403.
pub(crate) fn check_right(
    objects: &impl Objects,
    identity: &Identity,
    (change, current, wanted): (Change, &Value, &Value),
) -> Result<(), Failure> {
    let verb = match change {
        Change::Approval => "approve",
        Change::Status => "sign",
        _ => return Ok(()),
    };
    if identity.is_master() || current.get("status") == wanted.get("status") {
        return Ok(());
    }
    let signer = current.text("/spec/signerName");
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    let whole = format!("{domain}/*");
    let may = |name: &str| {
        let (group, resource) = (GROUP, "signers");
        let asked = Asked { verb, group, resource, subresource: "", namespace: "", name };
        rbac::allows(objects, identity, &asked)
    };
    if may(signer) || may(&whole) {
        return Ok(());
    }
    let resource = of(Kind::CertificateSigningRequest);
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(Failure::forbidden(resource, current.name(), &why))
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;
    use crate::signing::tests::pem;

    fn request() -> Value {
        json!({
            "metadata": {"name": "r"},
            "spec": {
                "request": STANDARD.encode(pem("system:node:n1", "system:nodes", &[])),
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
                "usages": ["digital signature", "client auth"],
                "username": "system:masters",
                "groups": ["system:masters"],
                "uid": "1",
            },
        })
    }

    #[test]
    fn who_asks_is_written_by_the_server() {
        let mut object = request();
        let identity = Identity { user: "eve".into(), groups: vec!["people".into()] };
        stamp_asker(Some(&identity), &mut object);
        assert_eq!(asker(&object).user, "eve");
        assert_eq!(asker(&object).groups, ["people", "system:authenticated"]);
        assert!(!object.has("/spec/uid"));
    }

    #[test]
    fn a_request_must_be_one_and_say_what_for() {
        let faults = |object: &Value| {
            let mut causes = Vec::new();
            check(object, &mut causes);
            causes.len()
        };
        assert_eq!(faults(&request()), 0);
        for (field, value) in [
            ("request", json!("bm9uZQ==")),
            ("signerName", json!("")),
            ("signerName", json!("plain")),
            ("usages", json!([])),
            ("usages", json!(["world domination"])),
            ("expirationSeconds", json!(599)),
        ] {
            let mut object = request();
            object["spec"][field] = value;
            assert_eq!(faults(&object), 1, "{field}");
        }
    }

    #[test]
    fn verdicts_come_by_approval_alone_and_stay() {
        let current = request();
        let mut wanted = current.clone();
        wanted["spec"]["username"] = json!("other");
        wanted["status"] = json!({"certificate": "AAAA",
            "conditions": [{"type": "Approved", "status": "True"}]});
        let mut by_status = wanted.clone();
        prepare_update(Change::Status, &current, &mut by_status);
        assert_eq!(by_status["spec"], current["spec"]);
        assert!(by_status.list("/status/conditions").is_empty());
        let mut by_approval = wanted;
        prepare_update(Change::Approval, &current, &mut by_approval);
        assert_eq!(by_approval.list("/status/conditions").len(), 1);
        assert!(!by_approval.has("/status/certificate"), "signing is the signer's");

        let mut causes = Vec::new();
        check_update(&by_approval, &current, &mut causes);
        assert_eq!(causes.len(), 1, "an approval is not taken back");
        let mut both = by_approval.clone();
        both["status"]["conditions"] = json!([
            {"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"},
        ]);
        causes.clear();
        check_update(&by_approval, &both, &mut causes);
        assert_eq!(causes.len(), 1);
    }

    #[derive(Default)]
    struct Nothing;

    impl Objects for Nothing {
        fn one(&self, _: &str) -> Option<std::sync::Arc<Value>> {
            None
        }

        fn all(&self, _: &str) -> Vec<(String, std::sync::Arc<Value>)> {
            Vec::new()
        }
    }

    #[test]
    fn nobody_approves_without_the_right_to() {
        let current = request();
        let mut approved = current.clone();
        approved["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        let eve = Identity { user: "eve".into(), groups: Vec::new() };
        let right = |who: &Identity| {
            check_right(&Nothing, who, (Change::Approval, &current, &approved)).is_ok()
        };
        assert!(!right(&eve));
        assert!(right(&Identity { user: "a".into(), groups: vec!["system:masters".into()] }));
    }
}
