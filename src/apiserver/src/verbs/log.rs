//! pods/log: asks the node that runs the pod, and passes its answer on as it comes.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::api::Api;
use crate::failure::Failure;
use crate::http::answer::{self, Answer, BodyError};
use crate::http::query::{Query, encode};
use crate::http::route::Target;
use crate::object::ObjectExt;
use crate::resource::{Kind, key};

/// How long the node may take to accept and to begin its answer.
const PATIENCE: Duration = Duration::from_secs(30);
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
    let asking = ask(api, &place, &path);
    let unreachable = |why: String| {
        Failure::internal(format!("Get \"https://{}:{}{path}\": {why}", place.host, place.port))
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(response)) => pass_on(response).await,
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("the node did not answer in time".into())),
    }
}

/// The container to read: the named one, the only one, or the one the annotation says.
fn container_of<'a>(pod: &'a Value, asked: &'a str) -> Result<&'a str, Failure> {
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

struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    fn of(node: &Value) -> Result<Self, Failure> {
        let address = |kind: &str| {
            let list = node.list("/status/addresses");
            list.iter().find(|one| one.text("/type") == kind).map(|one| one.text("/address"))
        };
        let host = address("InternalIP").or_else(|| address("Hostname")).unwrap_or_default();
        let port = node.int("/status/daemonEndpoints/kubeletEndpoint/Port").unwrap_or(10_250);
        match u16::try_from(port) {
            Ok(port) if !host.is_empty() => Ok(Self { host: host.to_owned(), port }),
            _ => Err(Failure::internal(format!(
                "no preferred addresses found; node {} has none",
                node.name()
            ))),
        }
    }
}

async fn ask(
    api: &Api,
    place: &Endpoint,
    path: &str,
) -> Result<Response<hyper::body::Incoming>, BodyError> {
    let stream = TcpStream::connect((place.host.as_str(), place.port)).await?;
    let name = ServerName::try_from(place.host.clone())?;
    let stream = TlsConnector::from(api.kubelet.get()).connect(name, stream).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let stop = api.stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            result = connection => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection to the node");
                }
            }
            () = stop.cancelled() => {}
        }
    });
    let request = Request::get(path)
        .header(HOST, format!("{}:{}", place.host, place.port))
        .body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?)
}

async fn pass_on(response: Response<hyper::body::Incoming>) -> Result<Answer, Failure> {
    let status = response.status();
    if status.is_success() {
        let body = response.into_body().map_err(|error| Box::new(error) as BodyError);
        let mut answer = Response::new(body.boxed_unsync());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        return Ok(answer);
    }
    let text = match http_body_util::Limited::new(response.into_body(), 64 << 10).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    match status {
        StatusCode::NOT_FOUND => Err(Failure::missing_on_node(text)),
        StatusCode::BAD_REQUEST => Err(Failure::bad_request(text)),
        other => Err(Failure::internal(format!("the node answered {other}: {text}"))),
    }
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

    #[test]
    fn a_node_without_address_cannot_be_asked() {
        assert!(Endpoint::of(&json!({"metadata": {"name": "n"}})).is_err());
    }
}
