//! How often something may be done: a bucket of tokens that fills with time.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// A rate. Shared by all who are held to it.
pub(super) struct Limiter {
    a_second: f64,
    most: f64,
    /// What is in the bucket, and since when.
    left: Mutex<(f64, Instant)>,
}

impl Limiter {
    /// So many a second, and so many at once; the bucket is full.
    pub(super) fn new(a_second: u32, most: u32) -> Self {
        let most = f64::from(most);
        Self { a_second: a_second.into(), most, left: Mutex::new((most, Instant::now())) }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&self) -> bool {
        let now = Instant::now();
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = now.saturating_duration_since(left.1).as_secs_f64() * self.a_second;
        *left = ((left.0 + grown).min(self.most), now);
        let is_there = left.0 >= 1.0;
        if is_there {
            left.0 -= 1.0;
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_let_through_and_then_so_many_a_second() {
        let limiter = Limiter::new(100, 10);
        let taken = || (0..50).filter(|_| limiter.take()).count();
        assert_eq!(taken(), 10);
        for (waited_ms, expected) in [(5, 0), (5, 1), (30, 3), (10_000, 10)] {
            tokio::time::advance(Duration::from_millis(waited_ms)).await;
            assert_eq!(taken(), expected, "after {waited_ms} ms");
        }
    }
}
