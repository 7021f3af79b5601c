//! Failures as clients see them: the `Status` object of the Kubernetes API (API conventions,
//! "Response Status Kind"). Owns reasons, codes and message shapes; knows nothing of HTTP framing.

use serde_json::{Map, Value, json};

use crate::resource::Resource;

/// A request that failed, ready to be rendered as a `Status`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", .0.message)]
pub(crate) struct Failure(Box<Facts>);

#[derive(Debug, Clone, PartialEq)]
struct Facts {
    code: u16,
    reason: &'static str,
    message: String,
    details: Option<Value>,
}

/// One thing wrong with one field of an object (a cause of an `Invalid` status).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    reason: &'static str,
    field: String,
    body: String,
}

impl Cause {
    /// The same of a part of something else, which `path` leads to.
    pub(crate) fn below(mut self, path: &str) -> Self {
        self.field = format!("{path}.{}", self.field);
        self
    }

    /// A field that must be set and is not.
    pub(crate) fn required(field: impl Into<String>, detail: &str) -> Self {
        let body = match detail {
            "" => "Required value".to_owned(),
            detail => format!("Required value: {detail}"),
        };
        Self { reason: "FieldValueRequired", field: field.into(), body }
    }

    /// A field whose value breaks a rule; strings are quoted, the rest is shown as JSON.
    pub(crate) fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let body = format!("Invalid value: {value}: {detail}");
        Self { reason: "FieldValueInvalid", field: field.into(), body }
    }

    /// A field that may not be set, or not be changed.
    pub(crate) fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self {
            reason: "FieldValueForbidden",
            field: field.into(),
            body: format!("Forbidden: {detail}"),
        }
    }

    /// A value outside a closed set.
    pub(crate) fn unsupported(field: impl Into<String>, value: &Value, allowed: &[&str]) -> Self {
        let mut allowed: Vec<String> = allowed.iter().map(|one| format!("{one:?}")).collect();
        allowed.sort();
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            body: format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")),
        }
    }

    /// A value that must be unique and occurs twice.
    pub(crate) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            field: field.into(),
            body: format!("Duplicate value: {value}"),
        }
    }

    /// A reference to something that is not there.
    pub(crate) fn missing(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueNotFound",
            field: field.into(),
            body: format!("Not found: {value}"),
        }
    }

    /// The cause as it is where the object with the field is itself in a field.
    pub(crate) fn within(self, outer: &str) -> Self {
        Self { field: format!("{outer}.{}", self.field), ..self }
    }

    /// The cause as one line of a message.
    pub(crate) fn line(&self) -> String {
        format!("{}: {}", self.field, self.body)
    }
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Facts { code, reason, message: message.into(), details: None }))
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.0.details = Some(details(resource.group, resource.plural, name));
        self
    }

    /// The object does not exist.
    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", resource.qualified()))
            .about(resource, name)
    }

    /// The node does not have what was asked of it; `message` is the node's.
    pub(crate) fn missing_on_node(message: impl Into<String>) -> Self {
        Self::new(404, "NotFound", message)
    }

    /// The path names nothing that this server has.
    pub(crate) fn no_such_path() -> Self {
        let mut failure =
            Self::new(404, "NotFound", "the server could not find the requested resource");
        failure.0.details = Some(json!({}));
        failure
    }

    /// An object of that name exists.
    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", resource.qualified()))
            .about(resource, name)
    }

    /// The write lost against another one, or a precondition does not hold.
    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified());
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// The optimistic-concurrency conflict of an update with an old resource version.
    pub(crate) fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and \
             try again",
        )
    }

    /// The object breaks validation rules.
    pub(crate) fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let lines: Vec<String> = causes.iter().map(Cause::line).collect();
        let list = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind = match resource.group {
            "" => resource.kind_name.to_owned(),
            group => format!("{}.{group}", resource.kind_name),
        };
        let mut failure = Self::new(422, "Invalid", format!("{kind} {name:?} is invalid: {list}"));
        let mut facts = details(resource.group, resource.kind_name, name);
        facts["causes"] = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.body, "field": c.field}))
            .collect();
        failure.0.details = Some(facts);
        failure
    }

    /// The request cannot be understood.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// No client certificate that this server knows.
    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// The user may not do that; `message` is complete.
    pub(crate) fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let what = match name {
            "" => format!("{} is forbidden: {why}", resource.qualified()),
            name => format!("{} {name:?} is forbidden: {why}", resource.qualified()),
        };
        Self::new(403, "Forbidden", what).about(resource, name)
    }

    /// The user may not ask that question; `what` is the resource with its group.
    pub(crate) fn forbidden_review(what: &str, why: &str) -> Self {
        Self::new(403, "Forbidden", format!("{what} is forbidden: {why}"))
    }

    /// The resource does not have that verb.
    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// None of the representations the client accepts can be produced.
    pub(crate) fn not_acceptable() -> Self {
        Self::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        )
    }

    /// The body is of a media type this server does not read.
    pub(crate) fn unsupported_media(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// The body is larger than the server reads.
    pub(crate) fn too_large(limit_bytes: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("request body is larger than the limit of {limit_bytes} bytes"),
        )
    }

    /// The history asked for is gone.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// A watch from a revision that is no longer in the history.
    pub(crate) fn too_old(requested: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// A revision this server has not reached.
    pub(crate) fn too_new(requested: u64, current: u64) -> Self {
        let mut failure = Self::new(
            504,
            "Timeout",
            format!("Too large resource version: {requested}, current: {current}"),
        );
        failure.0.details = Some(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }));
        failure
    }

    /// Semantically wrong without a field to name (JSON patch tests that fail, for one).
    pub(crate) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// The server is at fault.
    pub(crate) fn internal(message: impl std::fmt::Display) -> Self {
        let message = message.to_string();
        let mut failure =
            Self::new(500, "InternalError", format!("Internal error occurred: {message}"));
        failure.0.details = Some(json!({"causes": [{"message": message}]}));
        failure
    }

    /// The server, or the node behind it, cannot answer now.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// The HTTP status code.
    pub(crate) fn code(&self) -> u16 {
        self.0.code
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = Map::new();
        status.insert("kind".into(), "Status".into());
        status.insert("apiVersion".into(), "v1".into());
        status.insert("metadata".into(), json!({}));
        status.insert("status".into(), "Failure".into());
        status.insert("message".into(), self.0.message.clone().into());
        status.insert("reason".into(), self.0.reason.into());
        if let Some(details) = &self.0.details {
            status.insert("details".into(), details.clone());
        }
        status.insert("code".into(), self.0.code.into());
        Value::Object(status)
    }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".into(), name.into());
    }
    if !group.is_empty() {
        details.insert("group".into(), group.into());
    }
    details.insert("kind".into(), kind.into());
    Value::Object(details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Kind, of};

    #[test]
    fn a_missing_pod_reads_as_upstream_says_it() {
        let failure = Failure::not_found(of(Kind::Pod), "x");
        assert_eq!(failure.to_string(), "pods \"x\" not found");
        assert_eq!(failure.status()["details"], json!({"name": "x", "kind": "pods"}));
        assert_eq!(failure.code(), 404);
    }

    #[test]
    fn several_causes_are_listed_in_brackets() {
        let causes =
            [Cause::required("spec.a", ""), Cause::invalid("spec.b", &json!("q"), "no good")];
        let failure = Failure::invalid(of(Kind::EndpointSlice), "x", &causes);
        assert_eq!(
            failure.to_string(),
            "EndpointSlice.discovery.k8s.io \"x\" is invalid: [spec.a: Required value, spec.b: \
             Invalid value: \"q\": no good]"
        );
    }
}
