//! Rounds of the plan, on made-up observations; the properties hold for any sequence of them.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::eviction::threshold::Amount;

const SECOND: Duration = Duration::from_secs(1);

fn hard(signal: Signal, value: u64) -> Threshold {
    let value = Amount::Quantity(Quantity::bytes(value));
    Threshold { signal, value, grace: Duration::ZERO, min_reclaim: None }
}

fn config(thresholds: Vec<Threshold>) -> Config {
    Config { transition: SECOND * 300, ..Config::new(thresholds) }
}

fn seen(signal: Signal, available: u64) -> Observations {
    let capacity = Quantity::bytes(1000);
    Observations::from([(signal, Observation { available: Quantity::bytes(available), capacity })])
}

fn signals(round: &Round) -> Vec<Signal> {
    round.starved.iter().map(|threshold| threshold.signal).collect()
}

#[test]
fn a_hard_threshold_starves_at_once_and_its_condition_outlasts_it() {
    let config = config(vec![hard(Signal::NodeFsAvailable, 100)]);
    let (mut state, start) = (State::default(), Instant::now());
    let mut at = |second: u32, available| {
        let now = start + SECOND * second;
        step(&config, &mut state, &seen(Signal::NodeFsAvailable, available), now)
    };
    assert_eq!(at(0, 100), Round::default(), "as much as the threshold is enough");
    let round = at(10, 99);
    assert_eq!(signals(&round), [Signal::NodeFsAvailable]);
    assert_eq!(round.conditions, Conditions::from([Condition::Disk]));
    for second in [20, 309] {
        let round = at(second, 500);
        assert!(round.starved.is_empty());
        assert_eq!(round.conditions, Conditions::from([Condition::Disk]), "{second}");
    }
    assert_eq!(at(310, 500), Round::default());
}

#[test]
fn a_soft_threshold_waits_for_its_grace_without_a_break() {
    let soft = Threshold { grace: SECOND * 30, ..hard(Signal::MemoryAvailable, 100) };
    let config = config(vec![soft]);
    let (mut state, start) = (State::default(), Instant::now());
    let mut at = |second: u32, available| {
        let now = start + SECOND * second;
        let round = step(&config, &mut state, &seen(Signal::MemoryAvailable, available), now);
        (!round.starved.is_empty(), !round.conditions.is_empty())
    };
    assert_eq!(at(0, 50), (false, true), "the condition does not wait");
    assert_eq!(at(29, 50), (false, true));
    assert_eq!(at(29, 150), (false, true));
    assert_eq!(at(30, 50), (false, true), "it begins anew");
    assert_eq!(at(59, 50), (false, true));
    assert_eq!(at(60, 50), (true, true));
}

#[test]
fn a_threshold_is_settled_only_with_its_least_reclaim() {
    let least = Some(Amount::Share(0.1));
    let config =
        config(vec![Threshold { min_reclaim: least, ..hard(Signal::ImageFsAvailable, 100) }]);
    let (mut state, now) = (State::default(), Instant::now());
    let mut at = |available| {
        !step(&config, &mut state, &seen(Signal::ImageFsAvailable, available), now)
            .starved
            .is_empty()
    };
    assert!(!at(150), "it was never short");
    assert!(at(99) && at(150) && at(199));
    assert!(!at(200) && !at(150));
    let settled = |available| is_settled(&config, &seen(Signal::ImageFsAvailable, available));
    assert!(settled(200) && !settled(199));
}

#[test]
fn memory_comes_first_and_what_was_not_seen_is_not_short() {
    let config = config(vec![
        hard(Signal::PidAvailable, 100),
        hard(Signal::NodeFsAvailable, 100),
        hard(Signal::MemoryAvailable, 100),
    ]);
    let mut all = seen(Signal::PidAvailable, 1);
    all.extend(seen(Signal::MemoryAvailable, 1));
    let round = step(&config, &mut State::default(), &all, Instant::now());
    assert_eq!(signals(&round), [Signal::MemoryAvailable, Signal::PidAvailable]);
    assert_eq!(round.conditions, Conditions::from([Condition::Memory, Condition::Pid]));
}

proptest! {
    /// However what is left goes up and down, a condition holds from its cause on for the transition
    /// period, and no longer; nothing is starved that is not below its threshold with its reclaim.
    #[test]
    fn a_condition_never_flaps_within_the_transition_period(
        steps in prop::collection::vec((0u64..60, 0u64..200), 1..60),
        grace in 0u64..40,
        least in prop::option::of(0u64..50),
    ) {
        let min_reclaim = least.map(|least| Amount::Quantity(Quantity::bytes(least)));
        let threshold = hard(Signal::NodeFsAvailable, 100);
        let threshold = Threshold { grace: SECOND * grace as u32, min_reclaim, ..threshold };
        let config = config(vec![threshold]);
        let (mut state, mut now) = (State::default(), Instant::now());
        let mut since: Option<Instant> = None;
        let mut last_cause: Option<Instant> = None;
        for (pause, available) in steps {
            now += SECOND * pause as u32;
            let unsettled = !state.unsettled.is_empty();
            let observations = seen(Signal::NodeFsAvailable, available);
            let round = step(&config, &mut state, &observations, now);
            let reclaim = if unsettled { least.unwrap_or(0) } else { 0 };
            let is_short = available < 100 + reclaim;
            since = is_short.then(|| since.unwrap_or(now));
            last_cause = if is_short { Some(now) } else { last_cause };
            let holds = last_cause.is_some_and(|at| now - at < config.transition);
            prop_assert_eq!(!round.conditions.is_empty(), holds);
            let is_due = since.is_some_and(|at| now - at >= threshold.grace);
            prop_assert_eq!(!round.starved.is_empty(), is_due);
            prop_assert!(state.since.len() <= 1 && state.caused.len() <= 1);
        }
    }
}
