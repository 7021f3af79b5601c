//! Reviews: questions that are answered and not stored. Whom a token stands for, whether somebody may
//! do something, and who the asker is (`authentication.k8s.io/v1`, `authorization.k8s.io/v1`).

use hyper::StatusCode;
use serde_json::{Value, json};

use super::body::{self, Body};
use crate::api::Api;
use crate::failure::Failure;
use crate::http::access::{Identity, authorize_review, may};
use crate::http::answer::{self, Answer};
use crate::object::ObjectExt;
use crate::rbac::{self, Asked};
use crate::resource::Review;
use crate::tokens;

/// The paths, and what is below them, that everybody may read who is known.
const OPEN: [&str; 7] = ["/api", "/apis", "/healthz", "/livez", "/openapi", "/readyz", "/version"];

/// Answers a question.
///
/// # Errors
/// 400, and 403 where the asker may not ask.
pub(crate) fn answer(
    api: &Api,
    (review, identity): (Review, &Identity),
    body: &Body,
) -> Result<Answer, Failure> {
    authorize_review(&api.store, identity, review)?;
    let mut object = body::parse(body)?.value;
    if !object.is_object() {
        return Err(Failure::bad_request("the body of the request is no object"));
    }
    let status = match review {
        Review::Token => token(api, &object),
        Review::SelfSubject => json!({"userInfo": user(identity)}),
        Review::SelfAccess => access(api, identity, &object),
        Review::SelfRules => match object.text("/spec/namespace") {
            "" => return Err(Failure::bad_request("no namespace on request")),
            namespace => rules(identity, rbac::rules_of(&api.store, identity, namespace)),
        },
        Review::Access => {
            let who = Identity {
                user: object.text("/spec/user").to_owned(),
                groups: tokens::texts(&object, "/spec/groups"),
            };
            if who.user.is_empty() && who.groups.is_empty() {
                let why = "spec.user: Invalid value: \"\": at least one of user or group must be specified";
                return Err(Failure::bad_request(why));
            }
            access(api, &who, &object)
        }
    };
    object.put("/apiVersion", format!("{}/v1", review.group()));
    object.put("/kind", review.kind_name());
    object.put("/metadata", json!({"creationTimestamp": null}));
    object.put("/status", status);
    // What was asked about may be a secret; the answer is about it, not with it.
    if review == Review::Token {
        object.put("/spec/token", "");
    }
    Ok(answer::json(StatusCode::CREATED, &object))
}

fn user(identity: &Identity) -> Value {
    let mut groups = identity.groups.clone();
    if !groups.iter().any(|group| group == "system:authenticated") {
        groups.push("system:authenticated".to_owned());
    }
    json!({"username": identity.user, "groups": groups})
}

fn token(api: &Api, object: &Value) -> Value {
    let audiences = tokens::texts(object, "/spec/audiences");
    match tokens::authenticate(api, object.text("/spec/token"), &audiences) {
        Ok(bearer) => {
            let mut user = user(&bearer.identity);
            user["uid"] = bearer.uid.into();
            user["extra"] = bearer.extra;
            json!({"authenticated": true, "user": user, "audiences": bearer.audiences})
        }
        Err(doubt) => json!({"authenticated": false, "user": {}, "error": doubt.to_string()}),
    }
}

fn access(api: &Api, who: &Identity, object: &Value) -> Value {
    let of = |field: &str| object.text(&format!("/spec/resourceAttributes/{field}"));
    let allowed = if object.has("/spec/resourceAttributes") {
        let asked = Asked {
            verb: of("verb"),
            group: of("group"),
            resource: of("resource"),
            subresource: of("subresource"),
            namespace: of("namespace"),
            name: of("name"),
        };
        may(&api.store, who, &asked)
    } else {
        // Discovery and health are everybody's who is known; other paths are nobody's but masters'.
        let path = object.text("/spec/nonResourceAttributes/path");
        let below = |root: &&str| path == *root || path.starts_with(&format!("{root}/"));
        who.is_master() || OPEN.iter().any(below)
    };
    match allowed {
        true => json!({"allowed": true}),
        false => json!({"allowed": false, "reason": "no rule allows it"}),
    }
}

/// What somebody may do: what their rules say, what everybody may, and all of it for masters. What a node may
/// follows from its objects, which no list of rules says.
fn rules(who: &Identity, own: impl Iterator<Item = Value>) -> Value {
    let open: Vec<String> =
        OPEN.iter().flat_map(|root| [(*root).to_owned(), format!("{root}/*")]).collect();
    let mut non_resource = vec![json!({"verbs": ["get"], "nonResourceURLs": open})];
    let mut resource: Vec<Value> = [Review::SelfSubject, Review::SelfAccess, Review::SelfRules]
        .iter()
        .map(|one| json!({"verbs": ["create"], "apiGroups": [one.group()], "resources": [one.plural()]}))
        .collect();
    if who.is_master() {
        resource.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        non_resource.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    // Rules for paths are in no request's way: who is known reads what is open, and masters all.
    resource.extend(own.filter(|rule| rule.list("/nonResourceURLs").is_empty()));
    let mut status = json!({"resourceRules": resource, "nonResourceRules": non_resource,
        "incomplete": who.node().is_some()});
    if who.node().is_some() {
        status["evaluationError"] = "what a node may do is not told as rules".into();
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_rules_is_told_their_own_and_everybodys() {
        let own = || {
            let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
                {"verbs": ["get"], "nonResourceURLs": ["/metrics"]}]);
            rules.as_array().cloned().unwrap().into_iter()
        };
        let who =
            |group: &str, user: &str| Identity { user: user.into(), groups: vec![group.into()] };
        let told = rules(&who("people", "eve"), own());
        let resources = told.list("/resourceRules");
        assert_eq!(resources.len(), 4, "{told}");
        assert_eq!(resources[3]["resources"], json!(["pods"]));
        assert!(!told.to_string().contains("/metrics"), "such a rule gives nothing here");
        assert_eq!(told["incomplete"], false);
        let told = rules(&who("system:masters", "root"), own());
        assert_eq!(told["resourceRules"][3]["verbs"], json!(["*"]));
        assert_eq!(told["nonResourceRules"][1]["nonResourceURLs"], json!(["*"]));
        let told = rules(&who("system:nodes", "system:node:n"), own());
        assert_eq!(told["incomplete"], true);
    }
}
