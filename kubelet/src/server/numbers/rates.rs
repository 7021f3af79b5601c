//! How much of the processors is used at the moment: what a counter has grown by between two looks, each
//! of them somebody's request. Nothing looks when nobody asks, so the first who asks is told no rate,
//! as whoever asks cAdvisor before its second look. Pure.

use std::collections::BTreeMap;

/// Looks closer together say more of the counters' steps (10 ms, the host's) than of the use.
const LEAST_MS: u64 = 1000;

/// Processor time that something has had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    /// What: a cgroup, or a name that no cgroup has.
    pub(super) of: String,
    /// When, in milliseconds since the epoch.
    pub(super) at_ms: i64,
    /// How much, in microseconds.
    pub(super) total_us: u64,
}

/// The rates of what was seen last, in billionths of a processor.
pub(super) type NanoCores = BTreeMap<String, u64>;

struct Kept {
    at_ms: i64,
    total_us: u64,
    rate: Option<u64>,
}

/// The looks that rates are told from. What was not seen in the last one is forgotten.
#[derive(Default)]
pub(super) struct Rates(BTreeMap<String, Kept>);

impl Rates {
    /// Takes in what everything has had by now, and tells the rates.
    pub(super) fn look(&mut self, looks: impl IntoIterator<Item = Look>) -> NanoCores {
        let kept = looks.into_iter().map(|look| {
            let before = self.0.remove(&look.of);
            (look.of.clone(), next(before, &look))
        });
        self.0 = kept.collect();
        let rates = self.0.iter().filter_map(|(of, kept)| Some((of.clone(), kept.rate?)));
        rates.collect()
    }
}

fn next(before: Option<Kept>, look: &Look) -> Kept {
    let Look { at_ms, total_us, .. } = *look;
    let begun = Kept { at_ms, total_us, rate: None };
    let Some(before) = before else { return begun };
    let passed = u64::try_from(at_ms.saturating_sub(before.at_ms)).ok();
    match (passed, total_us.checked_sub(before.total_us)) {
        (Some(passed), Some(_)) if passed < LEAST_MS => before,
        (Some(passed), Some(grown)) => {
            Kept { rate: Some(grown.saturating_mul(1_000_000) / passed), ..begun }
        }
        // The clock was set back, or something else has the name now.
        _ => begun,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(of: &str, at_ms: i64, total_us: u64) -> Look {
        Look { of: of.to_owned(), at_ms, total_us }
    }

    #[test]
    fn a_rate_is_of_the_time_between_two_looks() {
        let mut rates = Rates::default();
        let mut rate = |at_ms, total_us| rates.look([look("/", at_ms, total_us)]).remove("/");
        assert_eq!(rate(10_000, 500_000), None, "nobody has looked before");
        assert_eq!(rate(12_000, 1_500_000), Some(500_000_000), "half a processor");
        assert_eq!(rate(12_900, 1_500_000), Some(500_000_000), "too soon for another");
        assert_eq!(rate(13_000, 3_500_000), Some(2_000_000_000), "since the look at 12 s");
        assert_eq!(rate(23_000, 3_500_000), Some(0));
    }

    #[test]
    fn what_begins_anew_has_no_rate() {
        let mut rates = Rates::default();
        let mut rate = |at_ms, total_us| rates.look([look("/", at_ms, total_us)]).remove("/");
        for (at_ms, total_us) in [(10_000, 5000), (20_000, 4000), (15_000, 6000)] {
            assert_eq!(rate(at_ms, total_us), None, "{at_ms}");
        }
        assert_eq!(rate(16_000, 7000), Some(1_000_000));
        assert_eq!(rate(i64::MAX, u64::MAX), Some(2), "whatever the counters say");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut rates = Rates::default();
        rates.look([look("a", 0, 0), look("b", 0, 0)]);
        assert_eq!(rates.look([look("b", 1000, 1000)]), [("b".to_owned(), 1_000_000)].into());
        assert_eq!(rates.0.len(), 1);
        assert!(!rates.look([look("a", 2000, 1000), look("b", 2000, 1000)]).contains_key("a"));
    }
}
