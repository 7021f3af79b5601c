//! pods/exec, pods/attach and pods/portforward: hands the client's connection to the node that runs
//! the pod.
//!
//! The upgrade is passed on as it came, WebSocket or SPDY, and the node's answer as it comes; after a
//! 101 the bytes are copied without being looked at. A node that answers otherwise has its answer
//! made a `Status`; a redirect is never followed (CVE-2020-8559).

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::log::container_of;
use super::node::{self, Endpoint};
use crate::api::Api;
use crate::failure::Failure;
use crate::http::answer::{Answer, BodyError};
use crate::http::query::{Query, encode};
use crate::http::route::Target;
use crate::object::ObjectExt;
use crate::resource::{Kind, Subresource, key};

/// The headers that make an upgrade; nothing else of the client's reaches the node.
const PASSED: [HeaderName; 6] = [
    CONNECTION,
    UPGRADE,
    HeaderName::from_static("sec-websocket-key"),
    HeaderName::from_static("sec-websocket-version"),
    HeaderName::from_static("sec-websocket-protocol"),
    HeaderName::from_static("x-stream-protocol-version"),
];

/// The same towards the client.
const RETURNED: [HeaderName; 5] = [
    CONNECTION,
    UPGRADE,
    HeaderName::from_static("sec-websocket-accept"),
    HeaderName::from_static("sec-websocket-protocol"),
    HeaderName::from_static("x-stream-protocol-version"),
];

/// Connects a client with a pod.
///
/// # Errors
/// 400 without an upgrade, 404, 500 when the node does not answer.
pub(crate) async fn stream(
    api: &Arc<Api>,
    target: &Target,
    (query, mut request): (&Query, Request<Incoming>),
) -> Result<Answer, Failure> {
    if !request.headers().contains_key(UPGRADE) {
        return Err(Failure::bad_request("Upgrade request required"));
    }
    let pod = api
        .store
        .get(&target.key())
        .ok_or_else(|| Failure::not_found(target.resource, &target.name))?;
    let node_name = pod.text("/spec/nodeName");
    if node_name.is_empty() {
        return Err(Failure::bad_request(format!(
            "pod {} does not have a host assigned",
            target.name
        )));
    }
    let node = api
        .store
        .get(&key(Kind::Node, "", node_name))
        .ok_or_else(|| Failure::not_found(crate::resource::of(Kind::Node), node_name))?;
    let place = Endpoint::of(&node)?;
    let path = match target.subresource {
        Some(Subresource::PortForward) => forward_path(target, query),
        Some(Subresource::Attach) => {
            session_path("attach", target, (query, container_of(&pod, query.text("container"))?))
        }
        _ => session_path("exec", target, (query, container_of(&pod, query.text("container"))?)),
    };
    let client = hyper::upgrade::on(&mut request);
    let method = match request.headers().contains_key("sec-websocket-key") {
        true => Method::GET,
        false => Method::POST,
    };
    let mut ours = Request::builder().method(method).uri(&path).header(HOST, place.authority());
    if let Some(headers) = ours.headers_mut() {
        copy(request.headers(), headers, &PASSED);
    }
    let ours = ours.body(Empty::<Bytes>::new()).map_err(Failure::internal)?;
    let mut response = node::ask(api, &place, ours).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(node::refusal(response).await);
    }
    let node = hyper::upgrade::on(&mut response);
    let stop = api.stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = join(client, node) => {}
            () = stop.cancelled() => {}
        }
    });
    let mut answer = Response::new(nothing());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    copy(response.headers(), answer.headers_mut(), &RETURNED);
    Ok(answer)
}

fn nothing() -> crate::http::answer::Body {
    Empty::new().map_err(|never| -> BodyError { match never {} }).boxed_unsync()
}

fn copy(from: &HeaderMap, to: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name.clone(), value.clone());
        }
    }
}

/// Copies both ways until one side has ended and the other has said its last.
async fn join(
    client: impl Future<Output = hyper::Result<Upgraded>>,
    node: impl Future<Output = hyper::Result<Upgraded>>,
) {
    let (client, node) = match tokio::try_join!(client, node) {
        Ok((client, node)) => (client, node),
        Err(error) => return tracing::debug!(%error, "upgrade a streaming connection"),
    };
    let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
    let size = 32 << 10;
    let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut node, size, size);
    if let Err(error) = copied.await {
        tracing::debug!(%error, "a streaming connection ended");
    }
}

/// The node's path of an exec or attach. The node calls the streams otherwise than the API does.
fn session_path(verb: &str, target: &Target, (query, container): (&Query, &str)) -> String {
    let mut path = format!(
        "/{verb}/{}/{}/{}?",
        encode(&target.namespace),
        encode(&target.name),
        encode(container)
    );
    let mut parts = Vec::new();
    if verb == "exec" {
        parts.extend(query.all("command").map(|word| format!("command={}", encode(word))));
    }
    // What is not said of output streams is upstream's default for each verb: nothing but what is set.
    for (ours, theirs) in
        [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
    {
        if query.flag(ours) {
            parts.push(format!("{theirs}=1"));
        }
    }
    path.push_str(&parts.join("&"));
    path
}

fn forward_path(target: &Target, query: &Query) -> String {
    let ports: Vec<_> = query.all("ports").map(|port| format!("port={}", encode(port))).collect();
    format!(
        "/portForward/{}/{}?{}",
        encode(&target.namespace),
        encode(&target.name),
        ports.join("&")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_put_into_the_nodes_words() {
        let target = Target::of(Kind::Pod, "d", "x");
        let query =
            Query::parse("command=sh&command=-c&command=a%20%26b&stdin=true&stdout=1&tty=0");
        assert_eq!(
            session_path("exec", &target, (&query, "c")),
            "/exec/d/x/c?command=sh&command=-c&command=a%20%26b&input=1&output=1"
        );
        let query = Query::parse("ports=80&ports=81");
        assert_eq!(forward_path(&target, &query), "/portForward/d/x?port=80&port=81");
    }
}
