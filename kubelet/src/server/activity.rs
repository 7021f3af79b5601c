//! When a streaming connection last carried anything, so that one which carries nothing for long can
//! be ended (`streamingConnectionIdleTimeout`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A shared time stamp. Cloning shares it.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    at: Arc<Mutex<Instant>>,
}

impl Activity {
    /// Active now.
    pub(crate) fn new() -> Self {
        Self { at: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Something was carried.
    pub(crate) fn touch(&self) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn at(&self) -> Instant {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once nothing has been carried for `limit`; never, where the limit is zero.
    pub(crate) async fn idle(&self, limit: Duration) {
        if limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let end = self.at() + limit;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_touch_puts_the_end_off() {
        let activity = Activity::new();
        let begin = Instant::now();
        let toucher = activity.clone();
        let touch = async {
            tokio::time::sleep(Duration::from_secs(6)).await;
            toucher.touch();
        };
        tokio::join!(activity.idle(Duration::from_secs(10)), touch);
        assert_eq!(begin.elapsed().as_secs(), 16);
    }
}
