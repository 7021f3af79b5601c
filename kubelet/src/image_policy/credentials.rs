//! Registry credentials from `imagePullSecrets`.
//!
//! Reads `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg` secrets and finds the entries
//! for an image, the most specific first. Host parts may be globs (`*.example.org`); ports must be
//! equal; paths match by prefix of whole components.
//!
//! Differs: upstream's path prefix also matches in the middle of a component (`team` for
//! `team-evil/app`), which would hand credentials to somebody else's repository.

use std::collections::BTreeMap;

use base64::Engine;
use berth_runtime::interface::Credentials;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// Where images without a registry come from.
const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_SECRET_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

impl Entry {
    fn credentials(self) -> Option<Credentials> {
        if !self.registrytoken.is_empty() {
            return Some(Credentials::Bearer(self.registrytoken));
        }
        let (mut username, mut password) = (self.username, self.password);
        if !self.auth.is_empty() {
            let engine = base64::engine::general_purpose::GeneralPurpose::new(
                &base64::alphabet::STANDARD,
                base64::engine::GeneralPurposeConfig::new()
                    .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
            );
            let decoded = engine.decode(self.auth.trim()).ok()?;
            let text = String::from_utf8(decoded).ok()?;
            let (user, secret) = text.split_once(':')?;
            (username, password) = (user.to_owned(), secret.to_owned());
        }
        if !self.identitytoken.is_empty() {
            (username, password) = ("<token>".to_owned(), self.identitytoken);
        }
        let empty = username.is_empty() && password.is_empty();
        (!empty).then_some(Credentials::Basic { username, password })
    }
}

/// What an entry is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Scope {
    host: String,
    port: Option<String>,
    path: Vec<String>,
}

impl Scope {
    fn parse(text: &str) -> Self {
        let bare =
            text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (authority, path) = bare.split_once('/').unwrap_or((bare, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port.to_owned())),
            _ => (authority, None),
        };
        let mut path: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if path.first().is_some_and(|part| part == "v1" || part == "v2") {
            path.remove(0);
        }
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
            host => host,
        };
        Self { host: host.to_ascii_lowercase(), port, path }
    }

    fn covers(&self, image: &Self) -> bool {
        let pattern: Vec<_> = self.host.split('.').collect();
        let host: Vec<_> = image.host.split('.').collect();
        pattern.len() == host.len()
            && pattern
                .iter()
                .zip(&host)
                .all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
            && self.port == image.port
            && image.path.starts_with(&self.path)
    }
}

/// `*` stands for any run of characters, `?` for one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((star_at, from)) = star else { return false };
                star = Some((star_at, from + 1));
                p = star_at + 1;
                t = from + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// Which secret it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretName {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl SecretName {
    fn of(secret: &Secret) -> Self {
        let ObjectMeta { uid, namespace, name, .. } = &secret.metadata;
        let [uid, namespace, name] =
            [uid, namespace, name].map(|part| part.clone().unwrap_or_default());
        Self { uid, namespace, name }
    }
}

/// Credentials and the secret that they are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// What is shown to the registry.
    pub credentials: Credentials,
    /// Where it is from.
    pub secret: SecretName,
}

/// The credentials of a pod, by registry.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    entries: Vec<(Scope, Key)>,
}

impl Keyring {
    /// Collects the entries of pull secrets. Those that cannot be read are passed over; the second
    /// value names their secrets, for a warning without their content.
    pub fn from_secrets<'s>(secrets: impl IntoIterator<Item = &'s Secret>) -> (Self, Vec<String>) {
        let mut keyring = Self::default();
        let mut unreadable = Vec::new();
        for secret in secrets {
            match parse_secret(secret) {
                Some(entries) => {
                    let of_secret = |(scope, credentials)| {
                        (scope, Key { credentials, secret: SecretName::of(secret) })
                    };
                    keyring.entries.extend(entries.into_iter().map(of_secret));
                }
                None => unreadable.push(secret.metadata.name.clone().unwrap_or_default()),
            }
        }
        let specificity = |scope: &Scope| {
            let globs = scope.host.contains(['*', '?']);
            (scope.path.len(), !globs, scope.host.len())
        };
        keyring.entries.sort_by_key(|(scope, _)| std::cmp::Reverse(specificity(scope)));
        (keyring, unreadable)
    }

    /// What to try for an image, the most specific first.
    pub fn lookup(&self, reference: &str) -> Vec<Key> {
        let image = Scope::parse(&repository_of(reference));
        let covering = self.entries.iter().filter(|(scope, _)| scope.covers(&image));
        covering.map(|(_, key)| key.clone()).collect()
    }
}

fn parse_secret(secret: &Secret) -> Option<Vec<(Scope, Credentials)>> {
    let data = secret.data.as_ref()?;
    let auths = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => {
            let bytes = &data.get(".dockerconfigjson")?.0;
            bounded::<ConfigJson>(bytes)?.auths
        }
        Some("kubernetes.io/dockercfg") => bounded(&data.get(".dockercfg")?.0)?,
        _ => return None,
    };
    let entries = auths.into_iter();
    Some(
        entries
            .filter_map(|(scope, entry)| Some((Scope::parse(&scope), entry.credentials()?)))
            .collect(),
    )
}

fn bounded<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let accepted = bytes.len() <= MAX_SECRET_BYTES;
    accepted.then(|| serde_json::from_slice(bytes).ok())?
}

/// The repository of a reference with its registry: `docker.io/library/busybox` for `busybox:1`.
pub fn repository_of(reference: &str) -> String {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    let slash = name.rfind('/').map_or(0, |position| position + 1);
    let name = match name[slash..].find(':') {
        Some(colon) => &name[..slash + colon],
        None => name,
    };
    match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
            if matches!(host, "docker.io" | "index.docker.io") {
                let library = if rest.contains('/') { "" } else { "library/" };
                return format!("{DEFAULT_REGISTRY}/{library}{rest}");
            }
            name.to_owned()
        }
        Some(_) => format!("{DEFAULT_REGISTRY}/{name}"),
        None => format!("{DEFAULT_REGISTRY}/library/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn secret(kind: &str, key: &str, content: &[u8]) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.name = Some("pull".into());
        secret.type_ = Some(format!("kubernetes.io/{kind}"));
        secret.data = Some([(key.to_owned(), ByteString(content.to_vec()))].into());
        secret
    }

    fn config(auths: serde_json::Value) -> Secret {
        let text = json!({"auths": auths}).to_string();
        secret("dockerconfigjson", ".dockerconfigjson", text.as_bytes())
    }

    fn users(secret: &Secret, image: &str) -> Vec<String> {
        let (keyring, unreadable) = Keyring::from_secrets([secret]);
        assert!(unreadable.is_empty());
        let user = |key: Key| match key.credentials {
            Credentials::Basic { username, .. } => username,
            Credentials::Bearer(token) => format!("bearer {token}"),
        };
        keyring.lookup(image).into_iter().map(user).collect()
    }

    fn user(name: &str) -> serde_json::Value {
        json!({"username": name, "password": "p"})
    }

    #[test]
    fn repositories_are_completed() {
        for (reference, expected) in [
            ("busybox", "docker.io/library/busybox"),
            ("busybox:1@sha256:x", "docker.io/library/busybox"),
            ("docker.io/busybox", "docker.io/library/busybox"),
            ("team/app:1", "docker.io/team/app"),
            ("localhost/app", "localhost/app"),
            ("r.example:5000/a/b:1", "r.example:5000/a/b"),
            ("r.example:5000/a", "r.example:5000/a"),
        ] {
            assert_eq!(repository_of(reference), expected);
        }
    }

    #[test]
    fn the_most_specific_entry_comes_first_and_strangers_get_nothing() {
        let secret = config(json!({
            "r.example": user("host"),
            "https://r.example/v2/team": user("team"),
            "*.example": user("glob"),
            "r.example:5000": user("port"),
        }));
        assert_eq!(users(&secret, "r.example/team/app:1"), ["team", "host", "glob"]);
        assert_eq!(users(&secret, "r.example/team-evil/app"), ["host", "glob"]);
        assert_eq!(users(&secret, "r.example:5000/x"), ["port"]);
        assert_eq!(users(&secret, "x.example/a"), ["glob"]);
        assert!(users(&secret, "a.r.example/a").is_empty());
        assert!(users(&secret, "r.example.evil.org/a").is_empty());
        assert!(users(&secret, "busybox").is_empty());
    }

    #[test]
    fn the_default_registry_has_many_names() {
        for key in [
            "https://index.docker.io/v1/",
            "docker.io",
            "index.docker.io",
            "https://registry-1.docker.io/v2/",
        ] {
            let secret = config(json!({key: user("hub")}));
            assert_eq!(users(&secret, "busybox"), ["hub"], "{key}");
            assert_eq!(users(&secret, "docker.io/team/app:2"), ["hub"], "{key}");
        }
    }

    #[test]
    fn every_form_of_entry_is_read() {
        let auth = base64::engine::general_purpose::STANDARD.encode("me:se:cret");
        let (keyring, _) = Keyring::from_secrets([&config(json!({"r.example": {"auth": auth}}))]);
        let expected = Credentials::Basic { username: "me".into(), password: "se:cret".into() };
        let found = keyring.lookup("r.example/a").into_iter().map(|key| key.credentials);
        assert!(found.eq([expected]));
        let token = config(json!({"r.example": {"registrytoken": "t"}}));
        assert_eq!(users(&token, "r.example/a"), ["bearer t"]);
        let old = secret(
            "dockercfg",
            ".dockercfg",
            json!({"r.example": user("old")}).to_string().as_bytes(),
        );
        assert_eq!(users(&old, "r.example/a"), ["old"]);
        assert!(users(&config(json!({"r.example": {"auth": "!!"}})), "r.example/a").is_empty());
    }

    #[test]
    fn an_unreadable_secret_is_named_and_no_more() {
        let secret =
            secret("dockerconfigjson", ".dockerconfigjson", b"{\"auths\": 5, \"password\": \"x\"}");
        let (keyring, unreadable) = Keyring::from_secrets([&secret]);
        assert_eq!(unreadable, ["pull"]);
        assert!(keyring.lookup("busybox").is_empty());
        assert!(
            !format!("{:?}", Keyring::from_secrets([&config(json!({"r": user("me")}))]))
                .contains("\"p\"")
        );
    }

    proptest! {
        #[test]
        fn a_glob_without_stars_is_equality(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(glob(a.as_bytes(), b.as_bytes()), a == b);
        }

        #[test]
        fn a_star_matches_what_begins_and_ends_right(a in "[a-c]{0,4}", m in "[a-c]{0,4}", b in "[a-c]{0,4}") {
            let pattern = format!("{a}*{b}");
            let text = format!("{a}{m}{b}");
            prop_assert!(glob(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
