//! Service account tokens for projected volumes: which ones a pod wants, and when to renew them.
//!
//! Asking for them (TokenRequest) is the caller's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};

const DEFAULT_LIFETIME_SECONDS: i64 = 3600;
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// What a token is asked for with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenRequest {
    /// Whom it is for; the API server when absent.
    pub audience: Option<String>,
    /// How long it is to be valid.
    pub expiration_seconds: i64,
}

impl From<&ServiceAccountTokenProjection> for TokenRequest {
    fn from(projection: &ServiceAccountTokenProjection) -> Self {
        let lifetime = projection.expiration_seconds;
        Self {
            audience: projection.audience.clone().filter(|a| !a.is_empty()),
            expiration_seconds: lifetime.unwrap_or(DEFAULT_LIFETIME_SECONDS),
        }
    }
}

impl TokenRequest {
    /// How long the token is to be valid.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.expiration_seconds).unwrap_or(0))
    }
}

/// What asking for a token gave.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// The token.
    Ready(String),
    /// Why there is none.
    Failed(String),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(_) => f.write_str("Ready(redacted)"),
            Self::Failed(why) => f.debug_tuple("Failed").field(why).finish(),
        }
    }
}

/// The tokens of a pod's service account.
pub type Tokens = BTreeMap<TokenRequest, Token>;

/// The tokens that a pod's volumes want.
pub fn token_requests(pod: &Pod) -> BTreeSet<TokenRequest> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected = volumes.filter_map(|volume| volume.projected.as_ref());
    let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
    sources
        .filter_map(|source| source.service_account_token.as_ref())
        .map(TokenRequest::from)
        .collect()
}

/// How old a token gets before it is renewed: 80 % of its life, or a day.
pub fn refresh_after(lifetime: Duration) -> Duration {
    lifetime.mul_f64(0.8).min(MAX_AGE)
}

/// Whether a token is to be renewed.
pub fn refresh_is_due(lifetime: Duration, age: Duration) -> bool {
    age >= refresh_after(lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_late_in_life_and_daily() {
        let hour = Duration::from_secs(3600);
        assert!(!refresh_is_due(hour, hour / 2));
        assert!(refresh_is_due(hour, hour.mul_f64(0.8)));
        assert!(!refresh_is_due(hour * 1000, hour * 23));
        assert!(refresh_is_due(hour * 1000, hour * 24));
    }
}
