//! pods/log over a WebSocket (RFC 6455): what the log says comes in messages, binary ones or, as
//! `base64.binary.k8s.io`, text. What the client sends is passed over; it ends the log by going.
//!
//! By hand, since all that is needed is to write frames: nothing of the client's is read but its end.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ring::digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::http::answer::{Answer, Body, full};

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
const PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// What RFC 6455 adds to a key.
const SALT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How messages carry the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Binary,
    Base64,
}

/// Whether a request wants a WebSocket.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|name| name.eq_ignore_ascii_case("websocket"))
}

/// Sends the body of `log` as messages until it ends, the client goes, or at `stop`.
///
/// # Errors
/// 400 for what is no handshake, and for protocols that are not known.
pub(crate) fn upgrade(
    mut request: Request<Incoming>,
    log: Answer,
    stop: CancellationToken,
) -> Result<Answer, Failure> {
    let headers = request.headers();
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let key = text(&KEY).filter(|_| text(&VERSION) == Some("13"));
    let key = key.ok_or_else(|| Failure::bad_request("not a WebSocket handshake"))?;
    let (form, protocol) = choose(text(&PROTOCOL))?;
    let accepted = accept(key);
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let sending = async {
            match client.await {
                Ok(client) => send(client, log.into_body(), form).await,
                Err(error) => tracing::debug!(%error, "upgrade a log"),
            }
        };
        tokio::select! {
            () = sending => {}
            () = stop.cancelled() => {}
        }
    });
    let mut answer = Response::new(full(""));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(ACCEPT, HeaderValue::try_from(accepted).map_err(Failure::internal)?);
    if let Some(protocol) = protocol {
        headers.insert(PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(answer)
}

/// The first protocol that is known; without any, messages are binary.
fn choose(offered: Option<&str>) -> Result<(Form, Option<&'static str>), Failure> {
    let Some(offered) = offered else { return Ok((Form::Binary, None)) };
    let known = offered.split(',').find_map(|name| match name.trim() {
        "binary.k8s.io" => Some((Form::Binary, Some("binary.k8s.io"))),
        "base64.binary.k8s.io" => Some((Form::Base64, Some("base64.binary.k8s.io"))),
        _ => None,
    });
    known.ok_or_else(|| {
        let known = "binary.k8s.io, base64.binary.k8s.io";
        Failure::bad_request(format!("unable to negotiate a WebSocket protocol of {known}"))
    })
}

fn accept(key: &str) -> String {
    let salted = [key.as_bytes(), SALT].concat();
    BASE64_STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &salted))
}

async fn send(client: Upgraded, mut log: Body, form: Form) {
    let (mut from, mut to) = tokio::io::split(TokioIo::new(client));
    let writing = async {
        while let Some(Ok(part)) = log.frame().await {
            let Ok(data) = part.into_data() else { continue };
            to.write_all(&message(&data, form)).await?;
            to.flush().await?;
        }
        // Closed as it should be: code 1000.
        to.write_all(&[0x88, 2, 0x03, 0xe8]).await?;
        to.shutdown().await
    };
    let reading = async {
        let mut passed = [0; 1024];
        while from.read(&mut passed).await.is_ok_and(|length| length > 0) {}
    };
    tokio::select! {
        written = writing => if let Err(error) = written {
            tracing::debug!(%error, "a log's reader has gone");
        },
        () = reading => {}
    }
}

/// One unmasked frame that is a whole message.
fn message(data: &[u8], form: Form) -> Vec<u8> {
    let (opcode, payload) = match form {
        Form::Binary => (2, data.to_vec()),
        Form::Base64 => (1, BASE64_STANDARD.encode(data).into_bytes()),
    };
    let mut frame = vec![0x80 | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length), _) if length < 126 => frame.push(length),
        (_, Ok(length)) => {
            frame.push(126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_frames_are_those_of_the_specification() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(message(b"Hello", Form::Binary), b"\x82\x05Hello");
        assert_eq!(message(b"Hello", Form::Base64), b"\x81\x08SGVsbG8=");
        assert_eq!(message(&[7; 256], Form::Binary)[..4], [0x82, 126, 1, 0]);
        assert_eq!(message(&[7; 65536], Form::Binary)[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(message(&[7; 125], Form::Binary).len(), 127);
        assert_eq!(message(&[7; 126], Form::Binary).len(), 130);
    }

    #[test]
    fn the_first_known_protocol_is_chosen() {
        assert_eq!(choose(None), Ok((Form::Binary, None)));
        let offered = "x, base64.binary.k8s.io,binary.k8s.io";
        assert_eq!(choose(Some(offered)), Ok((Form::Base64, Some("base64.binary.k8s.io"))));
        assert!(choose(Some("v4.channel.k8s.io")).is_err());
    }
}
