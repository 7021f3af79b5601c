//! When a request to the API server is tried again: back-off with jitter, and the server's own
//! `Retry-After` where it gave one.

use std::time::Duration;

use kube::core::Status;
use kube::core::response::StatusDetails;
use tokio::time::Instant;

use crate::backoff::{self, Backoff, Limits};

const LIMITS: Limits = Limits::new(Duration::from_millis(500), Duration::from_secs(30));

/// The waits between tries of one kind of request.
#[derive(Debug, Clone)]
pub struct Retry {
    backoff: Backoff,
}

impl Default for Retry {
    fn default() -> Self {
        Self { backoff: Backoff::new(LIMITS) }
    }
}

impl Retry {
    /// How long to wait after one more failure; at least what the server asked for.
    pub fn next_wait(&mut self, asked: Option<Duration>) -> Duration {
        let now = Instant::now();
        self.backoff.charge(now, now);
        let wait = self.backoff.waiting_since_charge(now).map_or(LIMITS.initial, |w| w.delay);
        let wait = backoff::with_jitter(wait);
        asked.map_or(wait, |asked| wait.max(asked))
    }

    /// After a success the next failure waits the shortest time again.
    pub fn reset(&mut self) {
        self.backoff.reset();
    }
}

/// What the server asked callers to wait, in the body of its refusal.
pub fn retry_after(error: &kube::Error) -> Option<Duration> {
    let kube::Error::Api(status) = error else {
        return None;
    };
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
}

/// The waits of [`settled`].
const SETTLING: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// Asks about what belongs to a pod, and for a second and a half again where that is forbidden: an API
/// server learns by a watch of its own which pods are on this node, and may do so after the node.
///
/// # Errors
/// The last answer's.
pub async fn settled<T, F>(asking: impl Fn() -> F) -> kube::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    settled_from(is_forbidden, asking).await
}

/// The same, where other answers may come of asking too early.
///
/// # Errors
/// The last answer's.
pub async fn settled_from<T, F>(
    is_early: fn(&kube::Error) -> bool,
    asking: impl Fn() -> F,
) -> kube::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    for wait in SETTLING {
        match asking().await {
            Err(error) if is_early(&error) => tokio::time::sleep(wait).await,
            answer => return answer,
        }
    }
    asking().await
}

/// Whether the server said 403.
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// Whether the server said 403, or 404 of something else than what was asked for: of the pod that a
/// token is to be bound to. An API server's store calls it one of `pods`, its admission a `pod`.
pub fn is_unknown_pod(error: &kube::Error) -> bool {
    let is_pod = |of: &StatusDetails| of.kind == "pods" || of.kind == "pod";
    let of_pod =
        |status: &Status| status.code == 404 && status.details.as_ref().is_some_and(is_pod);
    is_forbidden(error) || matches!(error, kube::Error::Api(status) if of_pod(status))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn refusal(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status { code, ..Status::default() }))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forbidden_is_asked_again_for_a_moment_and_nothing_else_is() {
        let asked = Cell::new(0);
        let after = |refusals: u32, code: u16| {
            asked.set(0);
            let asked = &asked;
            settled(move || async move {
                asked.set(asked.get() + 1);
                if asked.get() > refusals { Ok(()) } else { Err(refusal(code)) }
            })
        };
        assert!(after(4, 403).await.is_ok());
        assert_eq!(asked.get(), 5);
        assert!(after(1, 404).await.is_err());
        assert_eq!(asked.get(), 1);
        let began = Instant::now();
        assert!(is_forbidden(&after(100, 403).await.unwrap_err()));
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_grows_and_never_undercuts_what_the_server_asked_for() {
        let mut retry = Retry::default();
        let first = retry.next_wait(None);
        assert!(first >= Duration::from_millis(400) && first <= Duration::from_millis(600));
        for _ in 0..10 {
            retry.next_wait(None);
        }
        assert!(retry.next_wait(None) <= Duration::from_secs(36));
        retry.reset();
        assert!(retry.next_wait(Some(Duration::from_secs(7))) >= Duration::from_secs(7));
    }

    #[test]
    fn a_pod_that_the_server_does_not_know_yet_is_told_from_an_account_that_is_not_there() {
        let missing = |kind: &str| {
            let status = serde_json::json!({"code": 404, "details": {"kind": kind}});
            kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
        };
        assert!(is_unknown_pod(&missing("pods")));
        assert!(is_unknown_pod(&missing("pod")), "as NodeRestriction's lister has it");
        assert!(!is_unknown_pod(&missing("serviceaccounts")));
        assert!(is_unknown_pod(&refusal(403)));
    }
}
