//! One call of `grpc.health.v1.Health/Check`, for gRPC probes: unencrypted HTTP/2, one request, one
//! answer of two bytes.
//!
//! By hand, since that is all of gRPC that a probe needs: a length-prefixed message each way and a
//! status in the trailers (gRPC over HTTP/2, protocol buffers' wire format).

use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap};
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::http_call;

/// What is asked of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// The pod's address.
    pub(crate) host: String,
    /// The port.
    pub(crate) port: u16,
    /// The service; empty asks for the whole server.
    pub(crate) service: String,
}

/// A message longer than this is no answer to a health check.
const MAX_MESSAGE: usize = 4096;

/// gRPC's code for a method that a server does not know.
const UNIMPLEMENTED: &str = "12";

/// Asks once, within `timeout` in all. The error is what the probe's event says.
pub(crate) async fn check(call: &Call, agent: &str, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, exchange(call, agent)).await {
        Ok(result) => result,
        Err(_) => Err(format!("timeout: health rpc did not complete within {timeout:?}")),
    }
}

async fn exchange(call: &Call, agent: &str) -> Result<(), String> {
    let address = http_call::authority(&call.host, call.port);
    let unreachable =
        |error: String| format!("error: failed to connect service at {address:?}: {error}");
    let failed = |error: String| format!("error: health rpc probe failed: {error}");
    let stream = http_call::connect(&call.host, call.port).await.map_err(unreachable)?;
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| unreachable(e.to_string()))?;
    let connection = tokio::spawn(connection);
    let answer = async {
        let request = request(call, agent)?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (head, body) = response.into_parts();
        let (message, trailers) = read(body).await?;
        // A server that refuses at once puts the status among the headers.
        Ok((message, trailers.unwrap_or(head.headers)))
    };
    let answer = answer.await;
    connection.abort();
    let (message, status) = answer.map_err(failed)?;
    judge(&message, &status)
}

fn request(call: &Call, agent: &str) -> Result<Request<axum::body::Body>, String> {
    let uri = format!(
        "http://{}/grpc.health.v1.Health/Check",
        http_call::authority(&call.host, call.port)
    );
    Request::post(uri)
        .version(Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, agent)
        .body(axum::body::Body::from(message(&call.service)?))
        .map_err(|e| e.to_string())
}

/// `HealthCheckRequest{service}`, framed: uncompressed, length, field 1 as a string.
fn message(service: &str) -> Result<Bytes, String> {
    let mut fields = Vec::new();
    if !service.is_empty() {
        fields.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            fields.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        fields.push(u8::try_from(length).unwrap_or_default());
        fields.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(fields.len()).map_err(|_| "the service's name is too long")?;
    let mut framed = vec![0];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.append(&mut fields);
    Ok(framed.into())
}

async fn read(mut body: Incoming) -> Result<(Vec<u8>, Option<HeaderMap>), String> {
    let mut message = Vec::new();
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        let Some(frame) = frame else { return Ok((message, None)) };
        match frame.map_err(|e| e.to_string())?.into_data() {
            Ok(data) if message.len() + data.len() > MAX_MESSAGE => {
                return Err("the answer is too long".to_owned());
            }
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => {
                let trailers = frame.into_trailers().ok();
                return Ok((message, trailers));
            }
        }
    }
}

fn judge(message: &[u8], status: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| status.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => {}
        UNIMPLEMENTED => {
            return Err(format!(
                "error: this server does not implement the grpc health protocol \
                 (grpc.health.v1.Health): {}",
                text("grpc-message")
            ));
        }
        "" => return Err("error: health rpc probe failed: no grpc-status".to_owned()),
        code => {
            let said = text("grpc-message");
            return Err(format!(
                "error: health rpc probe failed: rpc error: code = {code} desc = {said}"
            ));
        }
    }
    let name = match serving_status(message) {
        Some(1) => return Ok(()),
        Some(2) => "NOT_SERVING",
        Some(3) => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    };
    Err(format!("service unhealthy (responded with {name:?})"))
}

/// Field 1 of a framed `HealthCheckResponse`; 0 where it is left out, as protocol buffers do.
fn serving_status(message: &[u8]) -> Option<u8> {
    let (&[is_compressed, a, b, c, d], fields) = message.split_first_chunk::<5>()?;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    match (is_compressed, fields) {
        (0, []) if length == 0 => Some(0),
        (0, [0x08, status, ..]) if length == fields.len() => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    async fn serve(reply: (&'static [u8], &'static str)) -> Call {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = move |request: axum::extract::Request| async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.version(), Version::HTTP_2);
            let body = axum::body::to_bytes(request.into_body(), 1000).await.unwrap();
            assert_eq!(&body[..], b"\0\0\0\0\x05\x0a\x03svc");
            let headers = [("grpc-status", reply.1), ("content-type", "application/grpc")];
            (headers, reply.0).into_response()
        };
        let router = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Call { host: "127.0.0.1".to_owned(), port, service: "svc".to_owned() }
    }

    #[tokio::test]
    async fn a_server_is_healthy_when_it_says_that_it_serves() {
        for (reply, expected) in [
            ((&b"\0\0\0\0\x02\x08\x01"[..], "0"), None),
            (
                (&b"\0\0\0\0\x02\x08\x02"[..], "0"),
                Some("service unhealthy (responded with \"NOT_SERVING\")"),
            ),
            ((&b"\0\0\0\0\0"[..], "0"), Some("service unhealthy (responded with \"UNKNOWN\")")),
            ((&b""[..], "12"), Some("error: this server does not implement the grpc health")),
            ((&b""[..], "5"), Some("error: health rpc probe failed: rpc error: code = 5")),
            ((&[0; 5000][..], "0"), Some("error: health rpc probe failed: the answer is too long")),
        ] {
            let call = serve(reply).await;
            let result = check(&call, "kube-probe/1.36", Duration::from_secs(5)).await;
            match (result, expected) {
                (Ok(()), None) => {}
                (Err(said), Some(begin)) => assert!(said.starts_with(begin), "{said}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_does_not_answer_is_given_up_and_what_does_not_listen_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let call = Call { host: "127.0.0.1".to_owned(), port, service: String::new() };
        let short = Duration::from_millis(50);
        let said = check(&call, "x", short).await.unwrap_err();
        assert!(said.starts_with("timeout: health rpc did not complete within 50ms"), "{said}");
        drop(listener);
        let said = check(&call, "x", short).await.unwrap_err();
        assert!(said.contains("connection refused"), "{said}");
    }

    #[test]
    fn long_names_of_services_are_framed_as_protocol_buffers_are() {
        let framed = message(&"x".repeat(200)).unwrap();
        assert_eq!(&framed[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
    }
}
