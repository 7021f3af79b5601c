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
use crate::rbac::Asked;
use crate::resource::Review;
use crate::tokens;

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
        let open = ["/api", "/apis", "/healthz", "/livez", "/openapi", "/readyz", "/version"];
        let below = |root: &&str| path == *root || path.starts_with(&format!("{root}/"));
        who.is_master() || open.iter().any(below)
    };
    match allowed {
        true => json!({"allowed": true}),
        false => json!({"allowed": false, "reason": "no rule allows it"}),
    }
}
