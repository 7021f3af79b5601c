//! Asking the API server who a token belongs to and what somebody may do, and keeping its answers for
//! a while. Failures are not kept. Both memories are bounded.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{Attributes, Identity};

/// How long a token is believed, or not.
const TOKEN: Duration = Duration::from_secs(120);
/// How long a permission holds.
const ALLOWED: Duration = Duration::from_secs(300);
/// How long a refusal holds.
const DENIED: Duration = Duration::from_secs(30);
/// The most answers of a kind that are kept.
const KEPT: usize = 4096;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nobody can say who calls, or what they may do.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// The API server refused or was not reached.
    #[error("the API server does not answer a review")]
    Api(#[source] Box<kube::Error>),
    /// It took too long.
    #[error("the API server took too long for a review")]
    Late,
}

/// Knows who tokens belong to, and who may do what on this node.
#[async_trait]
pub trait Reviewer: Send + Sync + 'static {
    /// Whose token this is; `None` for nobody's.
    async fn token(&self, token: &str) -> Result<Option<Identity>, Unanswered>;

    /// Whether somebody has a right on the node of this name.
    async fn access(
        &self,
        node: &str,
        identity: &Identity,
        wanted: &Attributes,
    ) -> Result<bool, Unanswered>;
}

/// The API server as the reviewer (TokenReview, SubjectAccessReview).
pub struct ApiServer(pub kube::Client);

async fn ask<T>(asking: impl Future<Output = kube::Result<T>>) -> Result<T, Unanswered> {
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer.map_err(|error| Unanswered::Api(Box::new(error))),
        Err(_) => Err(Unanswered::Late),
    }
}

#[async_trait]
impl Reviewer for ApiServer {
    async fn token(&self, token: &str) -> Result<Option<Identity>, Unanswered> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.0.clone());
        let answer = ask(api.create(&PostParams::default(), &review)).await?;
        let status = answer.status.filter(|status| status.authenticated == Some(true));
        Ok(status.and_then(|status| status.user).map(identity))
    }

    async fn access(
        &self,
        node: &str,
        identity: &Identity,
        wanted: &Attributes,
    ) -> Result<bool, Unanswered> {
        let spec = access_review(node, identity, wanted);
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let api: Api<SubjectAccessReview> = Api::all(self.0.clone());
        let answer = ask(api.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        Ok(status.allowed && status.denied != Some(true))
    }
}

fn identity(user: UserInfo) -> Identity {
    Identity {
        user: user.username.unwrap_or_default(),
        uid: user.uid.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    }
}

fn access_review(node: &str, identity: &Identity, wanted: &Attributes) -> SubjectAccessReviewSpec {
    SubjectAccessReviewSpec {
        user: Some(identity.user.clone()),
        uid: Some(identity.uid.clone()).filter(|uid| !uid.is_empty()),
        groups: Some(identity.groups.clone()),
        extra: Some(identity.extra.clone()).filter(|extra| !extra.is_empty()),
        resource_attributes: Some(ResourceAttributes {
            group: Some(String::new()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(wanted.subresource.to_owned()),
            verb: Some(wanted.verb.to_owned()),
            name: Some(node.to_owned()),
            ..ResourceAttributes::default()
        }),
        ..SubjectAccessReviewSpec::default()
    }
}

/// Answers that hold until a time.
struct Memory<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<V> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, value) = known.get(key)?;
        (*until > Instant::now()).then(|| value.clone())
    }

    fn put(&self, key: K, value: V, lasts: Duration) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if known.len() >= KEPT {
            known.retain(|_, (until, _)| *until > now);
        }
        if known.len() >= KEPT {
            // Somebody asks with ever new names; answers are fetched anew rather than memory filled.
            known.clear();
        }
        known.insert(key, (now + lasts, value));
    }
}

/// The reviewer's answers, kept for a while.
pub(super) struct Reviews {
    node: String,
    reviewer: Arc<dyn Reviewer>,
    /// By a digest: no token is kept.
    tokens: Memory<[u8; 32], Option<Identity>>,
    rights: Memory<(Identity, Attributes), bool>,
}

impl Reviews {
    pub(super) fn new(node: String, reviewer: Arc<dyn Reviewer>) -> Self {
        Self { node, reviewer, tokens: Memory::new(), rights: Memory::new() }
    }

    /// Whose token this is.
    pub(super) async fn identity(&self, token: &str) -> Result<Option<Identity>, Unanswered> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        let identity = self.reviewer.token(token).await?;
        self.tokens.put(key, identity.clone(), TOKEN);
        Ok(identity)
    }

    /// Whether somebody has a right.
    pub(super) async fn access(
        &self,
        identity: &Identity,
        wanted: &Attributes,
    ) -> Result<bool, Unanswered> {
        let key = (identity.clone(), *wanted);
        if let Some(known) = self.rights.get(&key) {
            return Ok(known);
        }
        let allowed = self.reviewer.access(&self.node, identity, wanted).await?;
        self.rights.put(key, allowed, if allowed { ALLOWED } else { DENIED });
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_that_is_known_of_a_caller_is_passed_on() {
        let user =
            json!({"username": "u", "uid": "1", "groups": ["g"], "extra": {"id": ["a", "b"]}});
        let identity = identity(serde_json::from_value(user).unwrap());
        let wanted = Attributes { verb: "get", subresource: "stats" };
        assert_eq!(
            serde_json::to_value(access_review("n", &identity, &wanted)).unwrap(),
            json!({
                "user": "u", "uid": "1", "groups": ["g"], "extra": {"id": ["a", "b"]},
                "resourceAttributes": {
                    "group": "", "version": "v1", "resource": "nodes", "subresource": "stats",
                    "verb": "get", "name": "n",
                },
            })
        );
    }
}
