//! Registry authentication without I/O: challenges read, headers written, secrets kept out of texts.
//! Docker's token protocol (distribution specification, *Token Authentication*).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeParser;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::registry::Failure;
use crate::interface::Credentials;

/// What a registry wants to see.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Challenges {
    pub(crate) basic: bool,
    pub(crate) bearer: Option<BearerChallenge>,
}

/// Where a bearer token is to be had.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BearerChallenge {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
}

/// Reads the `WWW-Authenticate` headers; what does not parse is passed over.
pub(crate) fn challenges(headers: &HeaderMap) -> Challenges {
    let mut found = Challenges::default();
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    for value in values.filter_map(|value| value.to_str().ok()) {
        for challenge in ChallengeParser::new(value).flatten() {
            let parameter = |name: &str| {
                let mut parameters = challenge.params.iter();
                let (_, value) = parameters.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                Some(value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                found.basic = true;
            } else if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter("realm")
            {
                let service = parameter("service");
                found.bearer = Some(BearerChallenge { realm, service });
            }
        }
    }
    found
}

/// A header that must not be logged.
fn secret_header(text: String) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| Failure::Refused("credentials that cannot be sent in a header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `Basic`.
pub(crate) fn basic(username: &str, password: &str) -> Result<HeaderValue, Failure> {
    let pair = STANDARD.encode(format!("{username}:{password}"));
    secret_header(format!("Basic {pair}"))
}

/// `Bearer`.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, Failure> {
    secret_header(format!("Bearer {token}"))
}

/// Reads a token service's answer.
pub(crate) fn token(body: &[u8]) -> Result<HeaderValue, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let unreadable = || Failure::Refused("the token service gave no token".into());
    let answer: Answer = serde_json::from_slice(body).map_err(|_| unreadable())?;
    let token = answer.token.or(answer.access_token).ok_or_else(unreadable)?;
    bearer(&token)
}

/// The texts that must not appear in a message.
pub(crate) fn secrets(credentials: Option<&Credentials>) -> Vec<String> {
    match credentials {
        None => Vec::new(),
        Some(Credentials::Bearer(token)) => vec![token.clone()],
        Some(Credentials::Basic { username, password }) => {
            vec![password.clone(), STANDARD.encode(format!("{username}:{password}"))]
        }
    }
}

/// Blots secrets out of a message.
pub(crate) fn redact(message: String, secrets: &[String]) -> String {
    secrets
        .iter()
        .filter(|secret| !secret.is_empty())
        .fold(message, |text, secret| text.replace(secret, "(redacted)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_and_basic_challenges_are_told_apart() {
        let mut headers = HeaderMap::new();
        let challenge = r#"Bearer realm="https://auth.example/token",service="reg",scope="x""#;
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"r\""));
        let found = challenges(&headers);
        assert!(found.basic);
        assert_eq!(
            found.bearer,
            Some(BearerChallenge {
                realm: "https://auth.example/token".into(),
                service: Some("reg".into())
            })
        );
    }

    #[test]
    fn secrets_are_blotted_out_of_messages() {
        let credentials = Credentials::Basic { username: "u".into(), password: "hunter2".into() };
        let secrets = secrets(Some(&credentials));
        let text = redact("failed: hunter2 and dTpodW50ZXIy".into(), &secrets);
        assert_eq!(text, "failed: (redacted) and (redacted)");
    }

    #[test]
    fn a_token_is_read_under_both_names() {
        assert!(token(br#"{"token":"a"}"#).is_ok());
        assert!(token(br#"{"access_token":"a"}"#).is_ok());
        assert!(token(br#"{}"#).is_err());
    }
}
