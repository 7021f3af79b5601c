//! Whether the node is short of something, and of what pods are to be ended: a pure function of what was
//! seen, the time, and what was so before.
//!
//! ```text
//!   below the threshold ──► met ─► the condition holds ─► (grace over) ─► reclaim
//!        ▲                   │                                │
//!        └── above it ◄──────┘ until the least reclaim is there, too
//!
//!   a condition outlasts its cause by the transition period
//! ```
//!
//! Follows upstream's eviction manager. Nothing here waits for numbers to be newer than the last: each
//! round reads them anew.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::threshold::{Condition, Config, Resource, Signal, Threshold};
use crate::quantity::Quantity;

/// What was seen of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// What is left.
    pub available: Quantity,
    /// What there is in all.
    pub capacity: Quantity,
}

/// What was seen; a signal that could not be read is not in it.
pub type Observations = BTreeMap<Signal, Observation>;

/// The conditions that hold.
pub type Conditions = BTreeSet<Condition>;

/// What is remembered between rounds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Since when each threshold is met, by its place.
    since: BTreeMap<usize, Instant>,
    /// The thresholds that pods were ended for, or would have been, and that are not settled.
    unsettled: BTreeSet<usize>,
    /// When each condition was last caused.
    caused: BTreeMap<Condition, Instant>,
}

/// What a round says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Round {
    /// The conditions that hold.
    pub conditions: Conditions,
    /// The thresholds that something has to be reclaimed for, the most urgent first.
    pub starved: Vec<Threshold>,
}

/// Looks at what was seen.
pub fn step(
    config: &Config,
    state: &mut State,
    observations: &Observations,
    now: Instant,
) -> Round {
    let thresholds = || config.thresholds.iter().enumerate();
    let met: BTreeSet<usize> = thresholds()
        .filter(|(place, threshold)| {
            let least =
                state.unsettled.contains(place) && is_met(threshold, observations, Aim::Reclaim);
            least || is_met(threshold, observations, Aim::Value)
        })
        .map(|(place, _)| place)
        .collect();
    state.since.retain(|place, _| met.contains(place));
    for place in &met {
        state.since.entry(*place).or_insert(now);
    }
    for (_, threshold) in thresholds().filter(|(place, _)| met.contains(place)) {
        state.caused.insert(threshold.signal.condition(), now);
    }
    let lasts = |at: &Instant| now.saturating_duration_since(*at) < config.transition;
    let lasting = state.caused.iter().filter(|(_, at)| lasts(at));
    let conditions = lasting.map(|(condition, _)| *condition).collect();
    let is_due = |place: &usize, threshold: &Threshold| {
        let since = state.since.get(place);
        since.is_some_and(|since| now.saturating_duration_since(*since) >= threshold.grace)
    };
    let due = thresholds().filter(|(place, threshold)| is_due(place, threshold));
    let (unsettled, mut starved): (_, Vec<Threshold>) =
        due.map(|(place, threshold)| (place, *threshold)).unzip();
    state.unsettled = unsettled;
    starved.sort_by_key(|threshold| threshold.signal.resource() != Resource::Memory);
    Round { conditions, starved }
}

/// Whether, after something was given back, every threshold is kept with its least reclaim.
pub fn is_settled(config: &Config, observations: &Observations) -> bool {
    !config.thresholds.iter().any(|threshold| is_met(threshold, observations, Aim::Reclaim))
}

/// How much has to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// The threshold.
    Value,
    /// That and the least reclaim.
    Reclaim,
}

fn is_met(threshold: &Threshold, observations: &Observations, aim: Aim) -> bool {
    observations.get(&threshold.signal).is_some_and(|seen| {
        let value = threshold.value.of(seen.capacity);
        let more = threshold.min_reclaim.filter(|_| aim == Aim::Reclaim);
        let wanted = more.map_or(value, |more| value + more.of(seen.capacity));
        wanted > seen.available
    })
}

#[cfg(test)]
mod tests;
