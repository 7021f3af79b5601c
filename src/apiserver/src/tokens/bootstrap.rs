//! Bootstrap tokens: Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`, by which machines
//! that have nothing yet ask for a certificate, and by which they know the cluster.
//!
//! A token is believed while its Secret is there, allows it, and has not expired. It signs the public
//! description of the cluster (`kube-public/cluster-info`) as a detached JSON web signature (RFC 7515,
//! HS256), so that whoever knows the token can tell a description that a stranger changed.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::http::access::Identity;
use crate::object::{ObjectExt, parse_stamp};

/// Where the Secrets are.
pub(crate) const NAMESPACE: &str = "kube-system";
/// Their type.
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// What their names start with.
const NAME_PREFIX: &str = "bootstrap-token-";
/// What the names of users start with.
const USER_PREFIX: &str = "system:bootstrap:";
/// The group of all of them; further groups start with it.
const GROUP: &str = "system:bootstrappers";

/// The parts of a token: `id.secret`. `None` for what is no bootstrap token.
pub(crate) fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (plain(id, 6) && plain(secret, 16)).then_some((id, secret))
}

/// The name of a token's Secret.
pub(crate) fn secret_name(id: &str) -> String {
    format!("{NAME_PREFIX}{id}")
}

/// A token as its Secret describes it.
pub(crate) struct Token {
    /// The public part.
    pub id: String,
    secret: String,
    expires: Option<Timestamp>,
    is_for_signing: bool,
    is_for_authentication: bool,
    groups: Vec<String>,
}

impl Token {
    /// Reads a Secret; `None` for one that is no token, or a damaged one.
    pub(crate) fn of_secret(object: &Value) -> Option<Self> {
        if object.text("/type") != SECRET_TYPE || object.namespace() != NAMESPACE {
            return None;
        }
        let field = |name: &str| -> Option<String> {
            let bytes = STANDARD.decode(object.text(&format!("/data/{name}"))).ok()?;
            String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
        };
        let (id, secret) = (field("token-id")?, field("token-secret")?);
        parts(&format!("{id}.{secret}"))?;
        if object.name() != secret_name(&id) {
            return None;
        }
        let expires = match field("expiration") {
            // What cannot be read might have been meant to be over.
            Some(text) => Some(parse_stamp(&text)?),
            None => None,
        };
        let groups = field("auth-extra-groups").unwrap_or_default();
        let groups = groups.split(',').filter(|group| is_group(group)).map(str::to_owned);
        Some(Self {
            groups: groups.collect(),
            is_for_signing: field("usage-bootstrap-signing").as_deref() == Some("true"),
            is_for_authentication: field("usage-bootstrap-authentication").as_deref()
                == Some("true"),
            id,
            secret,
            expires,
        })
    }

    /// Whether its time is over.
    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Whom it stands for, if this is its secret.
    pub(crate) fn identity(&self, secret: &str, now: Timestamp) -> Option<Identity> {
        let same = is_same(self.secret.as_bytes(), secret.as_bytes());
        (same && self.is_for_authentication && !self.is_over(now)).then(|| {
            let mut groups = vec![GROUP.to_owned(), "system:authenticated".to_owned()];
            groups.extend(self.groups.iter().cloned());
            Identity { user: format!("{USER_PREFIX}{}", self.id), groups }
        })
    }

    /// The detached signature of a text; `None` where the token is not for that.
    pub(crate) fn signature(&self, text: &str, now: Timestamp) -> Option<String> {
        if !self.is_for_signing || self.is_over(now) {
            return None;
        }
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": self.id}).to_string());
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(text));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.secret.as_bytes());
        let tag = ring::hmac::sign(&key, signed.as_bytes());
        Some(format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag)))
    }
}

/// A group that a token may add: nobody becomes a node or a master by a token.
fn is_group(name: &str) -> bool {
    let rest = name.strip_prefix("system:bootstrappers:").unwrap_or_default();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= 256
        && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
        && rest.bytes().next_back().is_some_and(plain)
}

/// Compares without telling by its time where the difference is.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(extra: &[(&str, &str)]) -> Value {
        let mut data = json!({
            "token-id": STANDARD.encode("abcdef"),
            "token-secret": STANDARD.encode("0123456789abcdef"),
            "usage-bootstrap-authentication": STANDARD.encode("true"),
            "usage-bootstrap-signing": STANDARD.encode("true"),
        });
        for (key, value) in extra {
            data[*key] = STANDARD.encode(value).into();
        }
        json!({
            "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
            "type": SECRET_TYPE,
            "data": data,
        })
    }

    fn now() -> Timestamp {
        "2026-06-01T00:00:00Z".parse().unwrap()
    }

    fn identity(extra: &[(&str, &str)]) -> Option<Identity> {
        Token::of_secret(&secret(extra))?.identity("0123456789abcdef", now())
    }

    #[test]
    fn a_token_is_a_bootstrapper_and_nobody_else() {
        let groups = "system:bootstrappers:kubeadm:default-node-token,system:masters,\
                      system:bootstrappers:,system:bootstrappers:X,system:nodes";
        let who = identity(&[("auth-extra-groups", groups)]).unwrap();
        assert_eq!(who.user, "system:bootstrap:abcdef");
        assert_eq!(
            who.groups,
            [
                "system:bootstrappers",
                "system:authenticated",
                "system:bootstrappers:kubeadm:default-node-token"
            ]
        );
    }

    #[test]
    fn a_token_is_believed_while_its_secret_allows_it() {
        assert!(identity(&[("expiration", "2026-06-01T00:00:01Z")]).is_some());
        assert!(identity(&[("expiration", "2026-06-01T00:00:00Z")]).is_none());
        assert!(identity(&[("expiration", "soon")]).is_none());
        assert!(identity(&[("usage-bootstrap-authentication", "false")]).is_none());
        let token = Token::of_secret(&secret(&[])).unwrap();
        assert!(token.identity("0123456789abcdeg", now()).is_none());
        assert!(token.identity("", now()).is_none());
        let mut elsewhere = secret(&[]);
        elsewhere["metadata"]["namespace"] = json!("default");
        assert!(Token::of_secret(&elsewhere).is_none(), "anybody may write Secrets there");
        let mut other = secret(&[]);
        other["metadata"]["name"] = json!("bootstrap-token-zzzzzz");
        assert!(Token::of_secret(&other).is_none());
    }

    #[test]
    fn a_signature_is_detached_and_by_the_secret() {
        let token = Token::of_secret(&secret(&[])).unwrap();
        let signature = token.signature("text", now()).unwrap();
        let (header, tag) = signature.split_once("..").unwrap();
        let header = URL_SAFE_NO_PAD.decode(header).unwrap();
        assert_eq!(header, br#"{"alg":"HS256","kid":"abcdef"}"#);
        assert_eq!(URL_SAFE_NO_PAD.decode(tag).unwrap().len(), 32);
        assert_ne!(token.signature("other", now()).unwrap(), signature);
        let silent = Token::of_secret(&secret(&[("usage-bootstrap-signing", "no")])).unwrap();
        assert_eq!(silent.signature("text", now()), None);
    }

    #[test]
    fn only_what_looks_like_a_token_is_looked_up() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in
            ["", "abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123", "a/cdef.0123456789abcdef"]
        {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
