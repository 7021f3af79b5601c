//! nodes/proxy: passes a reading on to the node's own API, and its answer as it comes.
//!
//! Only GET and HEAD are passed on, and no upgrade is: what runs commands goes by the pods' own
//! subresources. A redirect is never followed or told (CVE-2020-8559). A node may be named with the
//! scheme and the port of its API, `https:<name>:10250`; `Differs:` no other port of it is reached.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST, HeaderName,
    LAST_MODIFIED, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Request, Response};

use super::node::{self, Endpoint};
use crate::api::Api;
use crate::failure::Failure;
use crate::http::answer::{Answer, BodyError};
use crate::http::route::Target;

/// What of the client's request the node sees.
const PASSED: [HeaderName; 2] = [ACCEPT, RANGE];

/// What of the node's answer the client sees.
const RETURNED: [HeaderName; 6] = [
    CONTENT_TYPE,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    ACCEPT_RANGES,
    LAST_MODIFIED,
    X_CONTENT_TYPE_OPTIONS,
];

/// Asks the node for what lies behind `/proxy`.
///
/// # Errors
/// 404 without such a node, 400 for another port of it, 500 when it does not answer, or answers with a
/// redirect.
pub(crate) async fn read(
    api: &Api,
    target: &Target,
    request: &Request<Incoming>,
) -> Result<Answer, Failure> {
    let (name, port) = named(&target.name)
        .ok_or_else(|| Failure::bad_request(format!("invalid node request {:?}", target.name)))?;
    let node = api
        .store
        .get(&target.resource.key("", name))
        .ok_or_else(|| Failure::not_found(target.resource, name))?;
    let place = Endpoint::of(&node)?;
    if let Some(port) = port.filter(|port| *port != place.port()) {
        let why =
            format!("port {port} of node {name}: only its API is reached, on {}", place.port());
        return Err(Failure::bad_request(why));
    }
    let path = behind(request.uri().path()).ok_or_else(Failure::no_such_path)?;
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut ours = Request::builder()
        .method(request.method())
        .uri(format!("/{path}{query}"))
        .header(HOST, place.authority());
    for name in PASSED {
        for value in request.headers().get_all(&name) {
            ours = ours.header(&name, value);
        }
    }
    let ours = ours.body(Empty::<Bytes>::new()).map_err(Failure::internal)?;
    let answer = node::ask(api, &place, ours).await?;
    let status = answer.status();
    if status.is_redirection() || status.is_informational() {
        return Err(Failure::internal(format!("the node answered {status}")));
    }
    let (head, body) = answer.into_parts();
    let body = body.map_err(|error| Box::new(error) as BodyError);
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    for name in RETURNED {
        if let Some(value) = head.headers.get(&name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    Ok(answer)
}

/// The node's name, and the port where one is told, in `<name>`, `<name>:<port>` or
/// `<scheme>:<name>:<port>`. `None` where it has another form, or a scheme that nodes do not speak.
fn named(text: &str) -> Option<(&str, Option<u16>)> {
    let mut parts: Vec<&str> = text.split(':').collect();
    if parts.len() == 3 && matches!(parts[0], "" | "https") {
        parts.remove(0);
    }
    match parts.as_slice() {
        [name] | [name, ""] => Some((name, None)),
        [name, port] => Some((name, Some(port.parse().ok()?))),
        _ => None,
    }
}

/// The path behind `/api/v1/nodes/<name>/proxy/`.
fn behind(path: &str) -> Option<&str> {
    let mut parts = path.splitn(7, '/').skip(5);
    (parts.next() == Some("proxy")).then(|| parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_be_named_with_the_scheme_and_the_port_of_its_api() {
        assert_eq!(named("n"), Some(("n", None)));
        assert_eq!(named("n:10250"), Some(("n", Some(10_250))));
        assert_eq!(named("https:n:10250"), Some(("n", Some(10_250))));
        assert_eq!(named(":n:"), Some(("n", None)));
        for other in ["http:n:10250", "n:metrics", "n:70000", "a:b:c:d"] {
            assert_eq!(named(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_behind_the_proxy_is_passed_on_as_it_was_written() {
        assert_eq!(behind("/api/v1/nodes/n/proxy"), Some(""));
        assert_eq!(behind("/api/v1/nodes/n/proxy/logs/a%2Fb//c/"), Some("logs/a%2Fb//c/"));
        assert_eq!(behind("/api/v1/nodes/n/proxy/proxy"), Some("proxy"));
        assert_eq!(behind("/api//v1/nodes/n/proxy/logs"), None);
    }
}
