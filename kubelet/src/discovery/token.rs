//! A bootstrap token, and the signatures that those who know it make: detached JSON web signatures
//! with HMAC-SHA256 (RFC 7515, appendix F; RFC 7518, section 3.2). The algorithm is not the
//! signature's choice.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// What is no bootstrap token. The text is not repeated: it may be a misspelt secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no bootstrap token (expected 6 and 16 lower-case letters and digits, with a dot between)")]
pub struct MalformedToken;

/// A bootstrap token: a public part, and a secret that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}.…)", self.id)
    }
}

impl FromStr for Token {
    type Err = MalformedToken;

    fn from_str(text: &str) -> Result<Self, MalformedToken> {
        let (id, secret) = text.split_once('.').ok_or(MalformedToken)?;
        let plain = |part: &str, length: usize| {
            let mut bytes = part.bytes();
            part.len() == length && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        match plain(id, 6) && plain(secret, 16) {
            true => Ok(Self { id: id.to_owned(), secret: secret.to_owned() }),
            false => Err(MalformedToken),
        }
    }
}

/// What a signature says of itself.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

impl Token {
    /// The public part.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole token, to show to the API server.
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// Where the signature with this token is among the data of the cluster's description.
    pub(super) fn signature_key(&self) -> String {
        format!("jws-kubeconfig-{}", self.id)
    }

    /// Whether a detached signature of a text was made with this token.
    pub(super) fn signed(&self, text: &str, signature: &str) -> bool {
        let Some((head, tag)) = signature.split_once("..") else { return false };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Option<Header> =
            decode(head).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let (Some(header), Some(tag)) = (header, decode(tag)) else { return false };
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(text));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.secret.as_bytes());
        header.alg == "HS256"
            && header.kid == self.id
            && ring::hmac::verify(&key, signed.as_bytes(), &tag).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        "abcdef.0123456789abcdef".parse().unwrap()
    }

    fn sign(header: &str, text: &str, secret: &str) -> String {
        let head = URL_SAFE_NO_PAD.encode(header);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(text));
        format!("{head}..{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, signed.as_bytes())))
    }

    const HEADER: &str = r#"{"alg":"HS256","kid":"abcdef"}"#;
    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn only_who_knows_the_token_can_sign() {
        let good = sign(HEADER, "text", SECRET);
        assert!(token().signed("text", &good));
        assert!(!token().signed("text.", &good), "another text");
        assert!(!token().signed("text", &sign(HEADER, "text", "0123456789abcdeg")));
        let (head, _) = good.split_once("..").unwrap();
        for bad in ["", "..", "a..b", head, &format!("{head}.."), &good.replace("..", ".")] {
            assert!(!token().signed("text", bad), "{bad}");
        }
    }

    #[test]
    fn the_algorithm_is_not_the_signatures_choice() {
        for header in [
            r#"{"alg":"none","kid":"abcdef"}"#,
            r#"{"alg":"HS512","kid":"abcdef"}"#,
            r#"{"alg":"HS256","kid":"fedcba"}"#,
            r#"{"kid":"abcdef"}"#,
        ] {
            assert!(!token().signed("text", &sign(header, "text", SECRET)), "{header}");
        }
    }

    #[test]
    fn a_token_is_read_whole_and_its_secret_is_not_printed() {
        assert_eq!(token().reveal(), "abcdef.0123456789abcdef");
        assert!(!format!("{:?}", token()).contains("0123"));
        for bad in ["", "abcdef", "abcdef.", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdef0"]
        {
            assert_eq!(bad.parse::<Token>(), Err(MalformedToken), "{bad}");
        }
    }
}
