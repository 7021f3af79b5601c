//! Asking a node's own API on behalf of a client: where it is, one connection a request, and its
//! refusals as `Status` objects.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::api::Api;
use crate::failure::Failure;
use crate::http::answer::BodyError;
use crate::object::ObjectExt;
use crate::pki;

/// How long the node may take to accept and to begin its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The annotation by which a node that joined tells which certificate it made for itself. Nodes write
/// their own Node object only, so nobody else can have written it but an administrator.
const SERVING_CERTIFICATE: &str = "berth.io/serving-certificate-sha256";

/// Where a node's API is.
#[derive(Debug)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    /// The one certificate of its own that the node may show instead of one of our authority.
    own_certificate: Option<[u8; 32]>,
}

impl Endpoint {
    /// Reads it from a Node object.
    ///
    /// # Errors
    /// When the node tells no address.
    pub(crate) fn of(node: &Value) -> Result<Self, Failure> {
        let address = |kind: &str| {
            let list = node.list("/status/addresses");
            list.iter().find(|one| one.text("/type") == kind).map(|one| one.text("/address"))
        };
        let host = address("InternalIP").or_else(|| address("Hostname")).unwrap_or_default();
        let port = node.int("/status/daemonEndpoints/kubeletEndpoint/Port").unwrap_or(10_250);
        match u16::try_from(port) {
            Ok(port) if !host.is_empty() => Ok(Self {
                host: host.to_owned(),
                port,
                own_certificate: node.annotation(SERVING_CERTIFICATE).and_then(digest),
            }),
            _ => Err(Failure::internal(format!(
                "no preferred addresses found; node {} has none",
                node.name()
            ))),
        }
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Host and port, as the `Host` header has them.
    pub(crate) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Sends a request, whose URI is a path, on a connection of its own.
///
/// # Errors
/// 500 when the node cannot be reached or trusted, or does not answer in time.
pub(crate) async fn ask(
    api: &Api,
    place: &Endpoint,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, Failure> {
    let (method, path) = (request.method().clone(), request.uri().clone());
    let unreachable = |why: String| {
        Failure::internal(format!("{method} \"https://{}{path}\": {why}", place.authority()))
    };
    match tokio::time::timeout(PATIENCE, send(api, place, request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("the node did not answer in time".into())),
    }
}

async fn send(
    api: &Api,
    place: &Endpoint,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, BodyError> {
    let stream = TcpStream::connect((place.host.as_str(), place.port)).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(place.host.clone())?;
    let tls = match place.own_certificate {
        None => api.kubelet.get(),
        Some(digest) => pki::pinned(&api.kubelet.get(), &api.settings.ca_pem, digest)?,
    };
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let stop = api.stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            result = connection.with_upgrades() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection to the node");
                }
            }
            () = stop.cancelled() => {}
        }
    });
    Ok(sender.send_request(request).await?)
}

/// What a node says instead of what was asked for.
pub(crate) async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let text = match http_body_util::Limited::new(response.into_body(), 64 << 10).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    match status {
        StatusCode::NOT_FOUND => Failure::missing_on_node(text),
        StatusCode::BAD_REQUEST => Failure::bad_request(text),
        other => Failure::internal(format!("the node answered {other}: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_certificate_is_named_by_64_digits() {
        let mut node = json!({"metadata": {"name": "n", "annotations": {}}, "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
        assert_eq!(Endpoint::of(&node).unwrap().own_certificate, None);
        for (text, is_one) in
            [("ab".repeat(32), true), ("ab".repeat(31), false), ("xy".repeat(32), false)]
        {
            node["metadata"]["annotations"][SERVING_CERTIFICATE] = text.into();
            assert_eq!(Endpoint::of(&node).unwrap().own_certificate.is_some(), is_one);
        }
    }

    #[test]
    fn a_node_without_address_cannot_be_asked() {
        assert!(Endpoint::of(&json!({"metadata": {"name": "n"}})).is_err());
    }
}
