//! What the fake runtime has, what was done to it, and the knobs for what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_runtime::interface::SandboxStatus;
use tokio::time::Instant;

/// What the fake runtime has and does.
#[derive(Default)]
pub(crate) struct RuntimeState {
    pub(crate) sandboxes: Vec<SandboxStatus>,
    /// Fail so many times from now: by operation name.
    pub(crate) failures: BTreeMap<&'static str, u32>,
    /// Containers of these names end by themselves right after their start, with this code.
    pub(crate) exits_at_once: BTreeMap<String, i32>,
    /// Containers of these names do not end on a signal, only when killed.
    pub(crate) stubborn: BTreeSet<String>,
    /// Containers of these names take so long to end on a signal.
    pub(crate) lingers: BTreeMap<String, Duration>,
    /// Making the record of a container takes so long, and starting it as long again.
    pub(crate) making: Duration,
    /// Removing a container takes so long.
    pub(crate) removal: Duration,
    /// Containers of these names end on a signal with this code; 143 otherwise.
    pub(crate) stop_codes: BTreeMap<String, i32>,
    /// Commands that fail, or take their time: exit code and duration.
    pub(crate) commands: BTreeMap<String, (i32, Duration)>,
    /// What happened to containers: `start c`, `exec c command`, `signal c`, `exit c code`.
    pub(crate) history: Vec<String>,
    /// Every call, in order.
    pub(crate) calls: Vec<String>,
    /// What containers of these names use of memory, in bytes.
    pub(crate) memory_in_use: BTreeMap<String, u64>,
    /// The most live sandboxes there ever were of one namespace and name.
    pub(crate) most_live: usize,
    pub(super) serial: u64,
    /// The moment it was last looked at, and how often at that moment.
    looks: Option<(Instant, u32)>,
    /// Whether somebody looked without end while no time passed.
    pub(crate) was_spun: bool,
}

/// Nobody has cause to look so often without any time passing.
const MOST_LOOKS: u32 = 1000;

impl RuntimeState {
    /// Counts a look; whether there ever was one too many for a single moment.
    pub(super) fn looks_again(&mut self) -> bool {
        let now = Instant::now();
        let before = self.looks.filter(|(at, _)| *at == now).map_or(0, |(_, looks)| looks);
        self.looks = Some((now, before + 1));
        self.was_spun |= before >= MOST_LOOKS;
        self.was_spun
    }
}
