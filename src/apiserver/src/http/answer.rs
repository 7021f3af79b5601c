//! Making HTTP responses.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;

use crate::failure::Failure;

/// What can go wrong while a body is sent.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// Any response body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;
/// Any response.
pub(crate) type Answer = Response<Body>;

/// A body that is there at once.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A JSON response.
pub(crate) fn json(code: StatusCode, value: &Value) -> Answer {
    with_type(code, "application/json", value.to_string())
}

/// A response of a media type.
pub(crate) fn with_type(
    code: StatusCode,
    media_type: &'static str,
    text: impl Into<Bytes>,
) -> Answer {
    let mut response = Response::new(full(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A failure as its `Status`.
pub(crate) fn failure(failure: &Failure) -> Answer {
    let code = StatusCode::from_u16(failure.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &failure.status());
    if matches!(failure.code(), 429 | 503 | 504) {
        response.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}

/// Adds warnings as clients print them.
pub(crate) fn warn(response: &mut Answer, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append("warning", value);
        }
    }
}
