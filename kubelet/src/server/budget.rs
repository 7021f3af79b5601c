//! How many descriptors callers may have of those that the process may have open: an eighth for their
//! connections, an eighth for what their streams hold, and a little for health checks. An embedded API server
//! has an eighth for each of its two addresses, and passes streams on. A node that is asked for too much
//! refuses streams, and goes on making and ending pods.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most connections that may be open at once, however many descriptors there are.
const CONNECTIONS: usize = 512;
/// What one semaphore counts is enough.
const MOST: usize = 1 << 20;

/// The share of the node's callers.
#[derive(Debug, Clone)]
pub struct Budget {
    connections: usize,
    streams: Arc<Semaphore>,
}

/// Descriptors that a stream holds; dropping it gives them back.
#[derive(Debug)]
pub(super) struct Held(
    #[allow(dead_code, reason = "dropping it gives them back")] OwnedSemaphorePermit,
);

/// What holds descriptors besides a caller's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// exec, attach: three streams and the shim's connection.
    Session,
    /// The shim's connection of a command whose output is collected.
    Command,
    /// A connection to a pod's port.
    Forward,
    /// A log's file, and the watch for more of it.
    Log,
}

impl Use {
    fn descriptors(self) -> u32 {
        match self {
            Self::Session => 4,
            Self::Command | Self::Forward => 1,
            Self::Log => 2,
        }
    }
}

impl Budget {
    /// The share of a process that may have `limit` descriptors open.
    #[must_use]
    pub fn of(limit: u64) -> Self {
        let share = usize::try_from(limit / 8).unwrap_or(MOST).clamp(1, MOST);
        Self { connections: share.min(CONNECTIONS), streams: Arc::new(Semaphore::new(share)) }
    }

    /// How many connections may be open.
    pub(super) fn connections(&self) -> usize {
        self.connections
    }

    /// How many of them may be open besides, for health checks.
    pub(super) fn health_checks(&self) -> usize {
        (self.connections / 4).max(1)
    }

    /// Takes what a stream needs.
    ///
    /// # Errors
    /// 503 with words for the caller when so much is not left.
    pub(super) fn take(&self, what: Use) -> Result<Held, (StatusCode, String)> {
        let taken = Arc::clone(&self.streams).try_acquire_many_owned(what.descriptors());
        taken.map(Held).map_err(|_| {
            let text = "the node has as many streams open as it can have\n".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_have_a_quarter_of_the_descriptors_and_at_most_so_many_connections() {
        for (limit, connections, sessions) in
            [(0, 1, 0), (256, 32, 8), (1024, 128, 32), (524_288, 512, 16_384)]
        {
            let budget = Budget::of(limit);
            assert_eq!(budget.connections(), connections, "{limit}");
            let held: Vec<_> =
                std::iter::from_fn(|| budget.take(Use::Session).ok()).take(40_000).collect();
            assert_eq!(held.len(), sessions, "{limit}");
        }
        assert!(Budget::of(u64::MAX).take(Use::Session).is_ok());
    }

    #[test]
    fn what_a_stream_held_is_there_again() {
        let budget = Budget::of(32);
        let held = budget.take(Use::Session).unwrap();
        let (status, text) = budget.take(Use::Forward).unwrap_err();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("as many streams open"), "{text}");
        drop(held);
        assert!(budget.take(Use::Log).is_ok());
    }
}
