//! When a request to the API server is tried again: back-off with jitter, and the server's own
//! `Retry-After` where it gave one.

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
