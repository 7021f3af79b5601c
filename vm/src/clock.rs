//! The rate of the guest's clock.
//!
//! Owns measuring the time stamp counter. A guest finds out the rate of its counter by timing it
//! while it boots; translated in software on a busy host it was seen to be wrong by a factor of
//! three, and all its timeouts with it. TCG passes the host's counter on, so the host, which has
//! time to measure well, tells the guest.

use std::time::{Duration, Instant};

use crate::sys::time_stamp;

const MEASURED: Duration = Duration::from_millis(40);
/// A pair of readings that took longer was interrupted in between.
const ATOMIC: Duration = Duration::from_micros(5);

/// The rate in kHz.
pub(crate) fn counter_khz() -> u64 {
    let (first, first_stamp) = reading();
    std::thread::sleep(MEASURED);
    let (last, last_stamp) = reading();
    rate_khz(last - first, last_stamp.wrapping_sub(first_stamp))
}

fn reading() -> (Instant, u64) {
    let mut best = None;
    for _ in 0..1000 {
        let before = Instant::now();
        let stamp = time_stamp();
        let took = before.elapsed();
        if best.is_none_or(|(least, _, _)| took < least) {
            best = Some((took, before, stamp));
        }
        if took < ATOMIC {
            break;
        }
    }
    best.map_or_else(|| (Instant::now(), time_stamp()), |(_, before, stamp)| (before, stamp))
}

fn rate_khz(elapsed: Duration, ticks: u64) -> u64 {
    let nanos = elapsed.as_nanos().max(1);
    u64::try_from(u128::from(ticks) * 1_000_000 / nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_ticks_by_milliseconds() {
        assert_eq!(rate_khz(Duration::from_millis(40), 104_000_000), 2_600_000);
        assert_eq!(rate_khz(Duration::ZERO, 0), 0);
    }
}
