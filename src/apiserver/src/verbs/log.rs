//! pods/log: asks the node that runs the pod, and passes its answer on as it comes.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::Value;

use super::node::{self, Endpoint};
use crate::api::Api;
use crate::failure::Failure;
use crate::http::answer::{self, Answer, BodyError};
use crate::http::query::{Query, encode};
use crate::http::route::Target;
use crate::object::ObjectExt;
use crate::resource::{Kind, key};

/// The parameters that the node understands.
const PARAMETERS: [&str; 8] = [
    "follow",
    "limitBytes",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "stream",
    "tailLines",
    "timestamps",
];

/// Streams a container's log.
///
/// # Errors
/// 404, 400 for a container that must be named, 503 when the node does not answer.
pub(crate) async fn stream(api: &Api, target: &Target, query: &Query) -> Result<Answer, Failure> {
    let pod = api
        .store
        .get(&target.key())
        .ok_or_else(|| Failure::not_found(target.resource, &target.name))?;
    let container = container_of(&pod, query.text("container"))?;
    let node_name = pod.text("/spec/nodeName");
    if node_name.is_empty() {
        // Nothing runs, so nothing was said.
        return Ok(answer::with_type(StatusCode::OK, "text/plain", ""));
    }
    let node = api
        .store
        .get(&key(Kind::Node, "", node_name))
        .ok_or_else(|| Failure::not_found(crate::resource::of(Kind::Node), node_name))?;
    let place = Endpoint::of(&node)?;
    let mut path = format!(
        "/containerLogs/{}/{}/{}",
        encode(pod.namespace()),
        encode(pod.name()),
        encode(container)
    );
    let passed: Vec<String> = PARAMETERS
        .iter()
        .filter_map(|name| Some(format!("{name}={}", encode(query.get(name)?))))
        .collect();
    if !passed.is_empty() {
        path.push('?');
        path.push_str(&passed.join("&"));
    }
    let request = Request::get(path)
        .header(HOST, place.authority())
        .body(Empty::<Bytes>::new())
        .map_err(Failure::internal)?;
    pass_on(node::ask(api, &place, request).await?).await
}

/// The container to read: the named one, the only one, or the one the annotation says.
pub(super) fn container_of<'a>(pod: &'a Value, asked: &'a str) -> Result<&'a str, Failure> {
    let names = |list: &str| -> Vec<&'a str> {
        pod.list(&format!("/spec/{list}")).iter().map(|one| one.text("/name")).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    let ephemeral = names("ephemeralContainers");
    let bad = |why: String| Err(Failure::bad_request(why));
    if !asked.is_empty() {
        let known = main.iter().chain(&init).chain(&ephemeral).any(|name| *name == asked);
        return match known {
            true => Ok(asked),
            false => bad(format!("container {asked} is not valid for pod {}", pod.name())),
        };
    }
    if let Some(name) = pod.annotation("kubectl.kubernetes.io/default-container") {
        return Ok(name);
    }
    match main.as_slice() {
        [only] => Ok(only),
        _ if init.is_empty() => bad(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            pod.name(),
            main.join(" ")
        )),
        _ => bad(format!(
            "a container name must be specified for pod {}, choose one of: [{}] or one of the \
             init containers: [{}]",
            pod.name(),
            main.join(" "),
            init.join(" ")
        )),
    }
}

async fn pass_on(response: Response<Incoming>) -> Result<Answer, Failure> {
    if !response.status().is_success() {
        return Err(node::refusal(response).await);
    }
    let body = response.into_body().map_err(|error| Box::new(error) as BodyError);
    let mut answer = Response::new(body.boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_is_named_alone_or_annotated() {
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(
            container_of(&two, "").unwrap_err().to_string(),
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        assert_eq!(container_of(&two, "b"), Ok("b"));
        assert!(container_of(&two, "../x").is_err());
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container_of(&one, ""), Ok("a"));
    }
}
