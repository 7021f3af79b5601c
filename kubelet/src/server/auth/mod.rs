//! Who calls the node's API, and whether they may.
//!
//! ```text
//! client certificate ─┐                                    ┌─► system:masters: yes
//! bearer token ───────┴─► Identity ─► attributes (pure) ───┴─► SubjectAccessReview, kept for a while
//!  (TokenReview, kept for a while)
//! ```
//!
//! Nobody is anonymous, and there is no mode that lets everybody in. Answers are kept as upstream
//! keeps them: tokens 2 minutes, permissions 5 minutes, refusals 30 seconds.
//!
//! Differs: `system:masters` is not asked about. Every API server lets that group do everything, and
//! an administrator can so reach a node whose API server is down.

pub(super) mod attributes;
mod review;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use x509_parser::prelude::{FromDer, X509Certificate};

pub use attributes::Attributes;
pub use review::{ApiServer, Reviewer, Unanswered};

use review::Reviews;

/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// The longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Who calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The user.
    pub user: String,
    /// The user's identifier; empty where there is none.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// What else an authenticator said, for authorizers.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// The subject of a certificate that has been verified before: the common name is the user, the
    /// organizations are the groups (RFC 5280). `None` without a common name.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok().map(str::to_owned))
            .collect();
        (!user.is_empty()).then_some(Self { user, groups, ..Self::default() })
    }

    fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}

/// Decides on requests.
#[derive(Clone)]
pub struct Guard(Arc<Reviews>);

impl Guard {
    /// A guard of the node of this name that asks this reviewer.
    pub fn new(node: String, reviewer: Arc<dyn Reviewer>) -> Self {
        Self(Arc::new(Reviews::new(node, reviewer)))
    }

    /// Passes a request on: without an identity 401, without the right 403, where nobody can say 500
    /// as upstream.
    pub(super) async fn pass(self, mut request: Request, next: Next) -> Response {
        let identity = match self.identify(&mut request).await {
            Ok(Some(identity)) => identity,
            Ok(None) => return (StatusCode::UNAUTHORIZED, "Unauthorized\n").into_response(),
            Err(error) => return unanswered(&error),
        };
        let wanted = attributes::of(request.method(), request.uri().path());
        for attributes in &wanted {
            match self.may(&identity, attributes).await {
                Ok(true) => return next.run(request).await,
                Ok(false) => {}
                Err(error) => return unanswered(&error),
            }
        }
        let last = wanted.last().copied().unwrap_or(attributes::PROXY);
        let message = format!(
            "Forbidden (user={}, verb={}, resource=nodes, subresource={})\n",
            identity.user, last.verb, last.subresource
        );
        (StatusCode::FORBIDDEN, message).into_response()
    }

    /// Who calls. A certificate goes before a token.
    async fn identify(&self, request: &mut Request) -> Result<Option<Identity>, Unanswered> {
        // The token is nobody's business after this.
        let token = request.headers_mut().remove(header::AUTHORIZATION);
        if let Some(identity) = request.extensions().get::<Identity>() {
            return Ok(Some(identity.clone()));
        }
        let token = token.as_ref().and_then(|value| value.to_str().ok()).and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            let token = token.trim();
            let sound = !token.is_empty() && token.len() <= MAX_TOKEN_BYTES;
            (scheme.eq_ignore_ascii_case("bearer") && sound).then_some(token)
        });
        match token {
            Some(token) => self.0.identity(token).await,
            None => Ok(None),
        }
    }

    async fn may(&self, identity: &Identity, wanted: &Attributes) -> Result<bool, Unanswered> {
        if identity.is_master() {
            return Ok(true);
        }
        self.0.access(identity, wanted).await
    }
}

fn unanswered(error: &Unanswered) -> Response {
    tracing::warn!(error = %crate::worker::chain(error), "a caller of the node's API is not known");
    (StatusCode::INTERNAL_SERVER_ERROR, "Authorization error\n").into_response()
}
