//! Service account tokens: what they say, and whom they stand for.
//!
//! A token is believed while the account it names exists with the UID it had, and while the object it
//! is bound to (a pod, a Secret, a node) does. Deleting any of them ends it at once.
//!
//! Differs: tokens never live longer than was asked for; upstream gives those of pods a year where
//! clients may not reload them.

pub(crate) mod bootstrap;
mod signer;

use serde_json::{Value, json};

use crate::api::Api;
use crate::http::access::Identity;
use crate::object::{ObjectExt, new_uid};
use crate::resource::{Kind, key};

pub(crate) use signer::{Refused, Signer};

/// Who issues tokens, and whom they are for unless they say otherwise.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// What the user names of service accounts start with.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Whom a token stands for.
#[derive(Debug, Clone)]
pub(crate) struct Bearer {
    /// User and groups.
    pub identity: Identity,
    /// The account's UID.
    pub uid: String,
    /// What else is known: the pod and node it is bound to.
    pub extra: Value,
    /// The audiences that it is for and that were asked about.
    pub audiences: Vec<String>,
}

/// Why a token is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Doubt {
    /// It is not one of ours, or not of now.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It is for somebody else.
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
    /// What it stands for or is bound to is gone.
    #[error("{0} has been deleted or is another one")]
    Gone(String),
}

/// What a new token says.
pub(crate) struct Claims<'a> {
    /// The service account.
    pub account: &'a Value,
    /// The object it is bound to, and its kind in lower case.
    pub bound: Option<(&'static str, &'a Value)>,
    /// The node of the pod it is bound to.
    pub node: Option<&'a Value>,
    /// Whom it is for.
    pub audiences: &'a [String],
    /// When it is issued, in seconds since 1970.
    pub now: i64,
    /// How long it is valid.
    pub seconds: i64,
}

impl Claims<'_> {
    /// The claims as they are signed.
    pub(crate) fn to_value(&self) -> Value {
        let named = |object: &Value| json!({"name": object.name(), "uid": object.uid()});
        let (namespace, name) = (self.account.namespace(), self.account.name());
        let mut ours = json!({"namespace": namespace, "serviceaccount": named(self.account)});
        if let Some((kind, object)) = self.bound {
            ours[kind] = named(object);
        }
        if let Some(node) = self.node {
            ours["node"] = named(node);
        }
        json!({
            "iss": ISSUER,
            "sub": format!("{ACCOUNT_PREFIX}{namespace}:{name}"),
            "aud": self.audiences,
            "iat": self.now,
            "nbf": self.now,
            "exp": self.now.saturating_add(self.seconds),
            "jti": new_uid(),
            "kubernetes.io": ours,
        })
    }
}

/// Whom a token stands for, if it is for one of `audiences` (this server where there are none).
///
/// # Errors
/// Why it is not believed.
pub(crate) fn authenticate(api: &Api, token: &str, audiences: &[String]) -> Result<Bearer, Doubt> {
    if let Some((id, secret)) = bootstrap::parts(token) {
        return bootstrapper(api, (id, secret), audiences);
    }
    let claims = api.signer.verify(token, jiff::Timestamp::now().as_second())?;
    let of_token = texts(&claims, "/aud");
    let wanted = match audiences {
        [] => vec![ISSUER.to_owned()],
        some => some.to_vec(),
    };
    let shared: Vec<String> = wanted.iter().filter(|one| of_token.contains(one)).cloned().collect();
    if shared.is_empty() {
        return Err(Doubt::Audience(of_token, wanted));
    }
    let ours = |field: &str| claims.text(&format!("/kubernetes.io/{field}")).to_owned();
    let namespace = ours("namespace");
    let check = |kind: Kind, namespace: &str, field: &str| {
        let (name, uid) = (ours(&format!("{field}/name")), ours(&format!("{field}/uid")));
        let found = api.store.get(&key(kind, namespace, &name));
        match found.is_some_and(|object| !uid.is_empty() && object.uid() == uid) {
            true => Ok((name, uid)),
            false => Err(Doubt::Gone(format!("{field} {namespace}/{name}"))),
        }
    };
    let (name, uid) = check(Kind::ServiceAccount, &namespace, "serviceaccount")?;
    let mut extra = json!({
        "authentication.kubernetes.io/credential-id": [format!("JTI={}", claims.text("/jti"))],
    });
    for (kind, field, place) in [
        (Kind::Pod, "pod", namespace.as_str()),
        (Kind::Secret, "secret", namespace.as_str()),
        (Kind::Node, "node", ""),
    ] {
        if !claims.has(&format!("/kubernetes.io/{field}")) {
            continue;
        }
        // The node of a pod is told, not held against it: a token outlives the node's object.
        let of_pod = kind == Kind::Node && claims.has("/kubernetes.io/pod");
        let (name, uid) = match of_pod {
            true => (ours("node/name"), ours("node/uid")),
            false => check(kind, place, field)?,
        };
        if kind != Kind::Secret {
            extra[format!("authentication.kubernetes.io/{field}-name")] = json!([name]);
            extra[format!("authentication.kubernetes.io/{field}-uid")] = json!([uid]);
        }
    }
    let identity = Identity {
        user: format!("{ACCOUNT_PREFIX}{namespace}:{name}"),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".into(),
        ],
    };
    Ok(Bearer { identity, uid, extra, audiences: shared })
}

/// Whom a bootstrap token stands for. It is for this server and nobody else.
fn bootstrapper(
    api: &Api,
    (id, secret): (&str, &str),
    audiences: &[String],
) -> Result<Bearer, Doubt> {
    let ours = vec![ISSUER.to_owned()];
    if !audiences.is_empty() && !audiences.contains(&ours[0]) {
        return Err(Doubt::Audience(ours, audiences.to_vec()));
    }
    let object =
        api.store.get(&key(Kind::Secret, bootstrap::NAMESPACE, &bootstrap::secret_name(id)));
    let token = object.and_then(|object| bootstrap::Token::of_secret(&object));
    let identity = token.and_then(|token| token.identity(secret, jiff::Timestamp::now()));
    let identity = identity.ok_or(Doubt::Refused(Refused::Signature))?;
    Ok(Bearer { identity, uid: String::new(), extra: json!({}), audiences: ours })
}

/// The texts of a list.
pub(crate) fn texts(object: &Value, pointer: &str) -> Vec<String> {
    let list = object.list(pointer).iter();
    list.filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

/// `/.well-known/openid-configuration`.
pub(crate) fn discovery() -> Value {
    json!({
        "issuer": ISSUER,
        "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}
