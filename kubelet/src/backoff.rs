//! Growing delays: what a crash-looping container, a failing pull or a failing operation waits.
//!
//! Owns the arithmetic only; who waits, and for what, is the caller's. All times are monotonic, so a
//! step of the wall clock neither ends nor prolongs a wait. [`Backoff`] behaves like client-go's
//! `flowcontrol.Backoff` for one key.

use std::time::Duration;

use tokio::time::Instant;

/// The bounds of a growing delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The first delay.
    pub initial: Duration,
    /// The longest delay; doubling stops there.
    pub max: Duration,
    /// How long after the last charge the delay is forgotten.
    pub forget: Duration,
}

impl Limits {
    /// Limits from `initial` to `max`.
    pub const fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, forget: max.saturating_mul(2) }
    }

    /// Those between restarts of a container where no delay is longer than `max`: forgotten after a
    /// run of ten minutes, however short the longest delay is.
    pub fn of_restarts(max: Duration) -> Self {
        let initial = Duration::from_secs(10).min(max);
        Self { initial, max, forget: Duration::from_secs(600) }
    }
}

/// A delay that doubles each time it is charged and is forgotten after a quiet time of twice its
/// longest value (10 minutes for the default of 300 s).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    limits: Limits,
    entry: Option<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    delay: Duration,
    updated: Instant,
}

/// A wait that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// The whole delay.
    pub delay: Duration,
    /// When it ends.
    pub until: Instant,
}

impl Backoff {
    /// One that has not been charged.
    pub fn new(limits: Limits) -> Self {
        Self { limits, entry: None }
    }

    /// One found again after a restart of the agent: `delay` had last been charged at `updated`.
    pub fn recovered(limits: Limits, delay: Duration, updated: Instant) -> Self {
        let delay = delay.clamp(limits.initial, limits.max);
        Self { limits, entry: Some(Entry { delay, updated }) }
    }

    /// The wait that something which happened at `event` has to sit out, if it has not ended.
    pub fn waiting(&self, event: Instant, now: Instant) -> Option<Wait> {
        let entry = self.live_entry(event)?;
        let until = event + entry.delay;
        (now < until).then_some(Wait { delay: entry.delay, until })
    }

    /// The wait since the last charge, if it has not ended.
    pub fn waiting_since_charge(&self, now: Instant) -> Option<Wait> {
        self.waiting(self.entry?.updated, now)
    }

    /// Doubles the delay (or begins it) because of something that happened at `event`.
    pub fn charge(&mut self, event: Instant, now: Instant) {
        let delay = match self.live_entry(event) {
            Some(entry) => (entry.delay * 2).min(self.limits.max),
            None => self.limits.initial,
        };
        self.entry = Some(Entry { delay, updated: now });
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.entry = None;
    }

    fn live_entry(&self, event: Instant) -> Option<Entry> {
        self.entry.filter(|e| event.saturating_duration_since(e.updated) <= self.limits.forget)
    }
}

/// The delay before the next try of a container that has been started again after waiting `gap`.
///
/// Delays sit on a ladder (10 s, 20 s, … 300 s); the observed gap tells which rung was sat out.
pub fn rung_after(limits: Limits, gap: Duration) -> Duration {
    let mut rung = limits.initial;
    if gap < rung {
        return rung;
    }
    while rung < limits.max && gap >= rung * 2 {
        rung *= 2;
    }
    (rung * 2).min(limits.max)
}

/// Spreads `delay` by up to a fifth either way, so that many waiters do not return at once.
pub fn with_jitter(delay: Duration) -> Duration {
    delay.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRASH: Limits = Limits::new(Duration::from_secs(10), Duration::from_secs(300));

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_restart_is_immediate_and_the_second_waits_ten_seconds() {
        let start = Instant::now();
        let mut backoff = Backoff::new(CRASH);
        assert_eq!(backoff.waiting(at(start, 1), at(start, 1)), None);
        backoff.charge(at(start, 1), at(start, 1));
        let wait = backoff.waiting(at(start, 2), at(start, 2)).unwrap();
        assert_eq!(wait.delay, Duration::from_secs(10));
        assert_eq!(wait.until, at(start, 12));
        assert_eq!(backoff.waiting(at(start, 2), at(start, 12)), None);
    }

    #[test]
    fn the_delay_doubles_to_five_minutes() {
        let start = Instant::now();
        let mut backoff = Backoff::new(CRASH);
        let mut delays = Vec::new();
        for _ in 0..8 {
            backoff.charge(start, start);
            delays.push(backoff.waiting(start, start).unwrap().delay.as_secs());
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn a_run_of_more_than_ten_minutes_starts_again_at_nothing() {
        let start = Instant::now();
        let mut backoff = Backoff::new(CRASH);
        for _ in 0..6 {
            backoff.charge(start, start);
        }
        assert!(backoff.waiting(at(start, 600), at(start, 600)).is_some());
        assert_eq!(backoff.waiting(at(start, 601), at(start, 601)), None);
        backoff.charge(at(start, 601), at(start, 601));
        let wait = backoff.waiting(at(start, 602), at(start, 602)).unwrap();
        assert_eq!(wait.delay, Duration::from_secs(10));
    }

    #[test]
    fn a_shorter_longest_delay_is_forgotten_after_ten_minutes_all_the_same() {
        let start = Instant::now();
        for (max, delays) in [(5, [5, 5, 5]), (25, [10, 20, 25]), (300, [10, 20, 40])] {
            let mut backoff = Backoff::new(Limits::of_restarts(Duration::from_secs(max)));
            for delay in delays {
                backoff.charge(start, start);
                assert_eq!(backoff.waiting(start, start).unwrap().delay.as_secs(), delay);
            }
            assert!(backoff.waiting(at(start, 600), at(start, 600)).is_some());
            assert_eq!(backoff.waiting(at(start, 601), at(start, 601)), None);
        }
    }

    #[test]
    fn the_rung_is_found_again_from_the_gap_between_two_runs() {
        for (gap, delay) in [(0, 10), (9, 10), (10, 20), (21, 40), (45, 80), (170, 300), (400, 300)]
        {
            let found = rung_after(CRASH, Duration::from_secs(gap));
            assert_eq!(found, Duration::from_secs(delay), "gap {gap}");
        }
    }
}
