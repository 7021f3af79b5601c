//! Waiting for an effect.

use std::time::{Duration, Instant};

/// Asks `look` again and again until it finds something, and returns that. The pauses begin at a
/// millisecond and grow to fifty, so a test waits hardly longer than what it waits for.
///
/// # Panics
/// Nothing was found within `patience`; `what` is in the message.
pub fn wait_until<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < patience, "waited {patience:?} in vain for {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_at_the_third_look_is_returned() {
        let mut looks = 0;
        let found = wait_until(Duration::from_secs(5), "the third look", || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(found, 3);
    }

    #[test]
    #[should_panic(expected = "in vain for a miracle")]
    fn waiting_in_vain_says_for_what() {
        wait_until(Duration::ZERO, "a miracle", || None::<()>);
    }
}
