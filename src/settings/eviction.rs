//! What a KubeletConfiguration says of eviction: its texts read as upstream reads them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_kubelet::eviction::threshold::Amount;
use berth_kubelet::eviction::{Config, Signal, Threshold};
use berth_kubelet::quantity::Quantity;
use serde_json::json;

use super::documents::KubeletConfiguration;
use super::{Settings, duration};

/// Upstream's hard thresholds.
const USUAL: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// How long a condition outlasts its cause, where nothing is said.
const TRANSITION: Duration = Duration::from_secs(300);

/// Texts by signal, as they are written.
type Texts = BTreeMap<String, String>;

/// Reads what is said of eviction; what is ignored is told.
pub(super) fn resolve(
    given: &KubeletConfiguration,
    told: &mut Vec<String>,
) -> Result<Config, Vec<String>> {
    let mut faults = Vec::new();
    let hard = hard(given);
    let mut thresholds = Vec::new();
    for (field, texts) in [("evictionHard", &hard), ("evictionSoft", &given.eviction_soft)] {
        for (signal, text) in texts {
            let read = signal_of(signal).and_then(|signal| Ok((signal, value(signal, text)?)));
            let (signal, value) = match read {
                Ok((signal, Some(value))) => (signal, value),
                Ok((_, None)) => continue,
                Err(fault) => {
                    faults.push(format!("{field}: {fault}"));
                    continue;
                }
            };
            if signal.name().starts_with("containerfs.") {
                let which = if field == "evictionHard" { "hard" } else { "soft" };
                let name = signal.name();
                told.push(format!(
                    "{field}: {name} is ignored for {which} eviction: nodefs's holds"
                ));
                continue;
            }
            let soft = (field == "evictionSoft").then(|| grace(given, signal));
            match soft.unwrap_or(Ok(Duration::ZERO)) {
                Ok(grace) => {
                    thresholds.push(Threshold { signal, value, grace, min_reclaim: None });
                }
                Err(fault) => faults.push(fault),
            }
        }
    }
    let graces = given.eviction_soft_grace_period.iter();
    faults.extend(graces.filter_map(|(signal, text)| {
        let read = signal_of(signal).and_then(|_| period(text));
        read.err().map(|fault| format!("evictionSoftGracePeriod: {fault}"))
    }));
    for (signal, text) in &given.eviction_minimum_reclaim {
        match signal_of(signal).and_then(|signal| Ok((signal, least(signal, text)?))) {
            Ok((signal, amount)) => {
                let of = thresholds.iter_mut().filter(|threshold| threshold.signal == signal);
                of.for_each(|threshold| threshold.min_reclaim = Some(amount));
            }
            Err(fault) => faults.push(format!("evictionMinimumReclaim: {fault}")),
        }
    }
    let field = "evictionPressureTransitionPeriod";
    let transition = given.eviction_pressure_transition_period.as_deref().map(duration);
    let transition = match transition {
        None => TRANSITION,
        Some(Some(period)) if period.is_zero() => TRANSITION,
        Some(Some(period)) => period,
        Some(None) => {
            faults.push(format!("{field}: this is no duration"));
            TRANSITION
        }
    };
    let seconds = u64::try_from(given.eviction_max_pod_grace_period.unwrap_or(0)).unwrap_or(0);
    let max_pod_grace = Duration::from_secs(seconds);
    match faults.is_empty() {
        true => Ok(Config { max_pod_grace, transition, ..Config::new(thresholds) }),
        false => Err(faults),
    }
}

/// The hard thresholds in force: what is written, with the usual ones where nothing is, or where they are
/// to be merged in.
fn hard(given: &KubeletConfiguration) -> Texts {
    let usual = USUAL.map(|(signal, text)| (signal.to_owned(), text.to_owned()));
    match &given.eviction_hard {
        None => usual.into(),
        Some(written) if given.merge_default_eviction_settings => {
            let mut merged = Texts::from(usual);
            merged.extend(written.clone());
            merged
        }
        Some(written) => written.clone(),
    }
}

/// What is in force, for `/configz`.
pub(super) fn in_force(given: &KubeletConfiguration, settings: &mut Settings) {
    let period = format!("{}s", settings.kubelet.eviction.transition.as_secs_f64());
    settings.in_force["evictionHard"] = json!(hard(given));
    settings.in_force["evictionPressureTransitionPeriod"] = json!(period);
}

/// Leaves more of the disks to a node that is alone on somebody's machine: a hundredth is kept where
/// nothing is said, since what else is on them is not the node's, and a full laptop is no full node.
pub(crate) fn share_disks(settings: &mut Settings) {
    if settings.kubelet.eviction_is_said {
        return;
    }
    for threshold in &mut settings.kubelet.eviction.thresholds {
        let signal = threshold.signal;
        if matches!(signal, Signal::NodeFsAvailable | Signal::ImageFsAvailable) {
            threshold.value = Amount::Share(0.01);
            settings.in_force["evictionHard"][signal.name()] = json!("1%");
        }
    }
}

fn signal_of(name: &str) -> Result<Signal, String> {
    Signal::named(name).ok_or_else(|| format!("unsupported eviction signal {name}"))
}

/// A threshold's value; `None` for shares that never or always hold, which upstream ignores.
fn value(signal: Signal, text: &str) -> Result<Option<Amount>, String> {
    let name = signal.name();
    if matches!(text, "0%" | "100%") {
        return Ok(None);
    }
    match amount(signal, text)? {
        Amount::Share(share) if share < 0.0 => {
            Err(format!("eviction percentage threshold {name} must be >= 0%: {text}"))
        }
        Amount::Share(share) if share > 1.0 => {
            Err(format!("eviction percentage threshold {name} must be <= 100%: {text}"))
        }
        Amount::Quantity(quantity) if !quantity.is_positive() => {
            Err(format!("eviction threshold {name} must be positive: {quantity}"))
        }
        amount => Ok(Some(amount)),
    }
}

/// A least reclaim.
fn least(signal: Signal, text: &str) -> Result<Amount, String> {
    let name = signal.name();
    match amount(signal, text)? {
        Amount::Share(share) if share <= 0.0 => {
            Err(format!("eviction percentage minimum reclaim {name} must be positive: {text}"))
        }
        Amount::Quantity(quantity) if !quantity.is_positive() && !quantity.is_zero() => {
            Err(format!("negative eviction minimum reclaim specified for {name}"))
        }
        amount => Ok(amount),
    }
}

fn amount(signal: Signal, text: &str) -> Result<Amount, String> {
    let name = signal.name();
    if let Some(number) = text.strip_suffix('%') {
        let number = number.parse::<f32>().ok().filter(|number| number.is_finite());
        return match number {
            Some(number) => Ok(Amount::Share(number / 100.0)),
            None => Err(format!("{name}: {text:?} is no percentage")),
        };
    }
    let quantity = text.parse::<Quantity>();
    quantity.map(Amount::Quantity).map_err(|_| format!("{name}: {text:?} is no quantity"))
}

fn grace(given: &KubeletConfiguration, signal: Signal) -> Result<Duration, String> {
    let name = signal.name();
    match given.eviction_soft_grace_period.get(name) {
        // A period that cannot be read is a fault of its own.
        Some(text) => Ok(period(text).unwrap_or_default()),
        None => Err(format!(
            "evictionSoft: grace period must be specified for the soft eviction threshold {name}"
        )),
    }
}

fn period(text: &str) -> Result<Duration, String> {
    if text.strip_prefix('-').and_then(duration).is_some() {
        let what = "invalid eviction grace period specified";
        return Err(format!("{what}: {text}, must be a positive value"));
    }
    duration(text).ok_or_else(|| format!("{text:?} is no duration"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::documents;

    fn read(fields: &str) -> Result<(Config, Vec<String>), Vec<String>> {
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let given = documents::parse(&format!("{head}{fields}")).unwrap().kubelet;
        let mut told = Vec::new();
        resolve(&given, &mut told).map(|config| (config, told))
    }

    #[test]
    fn nothing_said_is_what_upstream_does() {
        let usual = Config::default();
        let mut sorted = usual.thresholds.clone();
        let mut read = read("evictionPressureTransitionPeriod: 0s\n").unwrap().0;
        for thresholds in [&mut sorted, &mut read.thresholds] {
            thresholds.sort_by_key(|threshold| threshold.signal);
        }
        assert_eq!(read, Config { thresholds: sorted, ..usual });
    }

    #[test]
    fn what_is_written_stands_alone_unless_it_is_merged() {
        let count = |fields: &str| read(fields).unwrap().0.thresholds.len();
        assert_eq!(count("evictionHard: {}\n"), 0);
        assert_eq!(count("evictionHard: {nodefs.available: 1Gi, imagefs.available: 0%}\n"), 1);
        let merged = "mergeDefaultEvictionSettings: true\n";
        let given = "evictionHard: {nodefs.available: 0%, pid.available: '100'}\n";
        assert_eq!(
            count(&format!("{merged}{given}")),
            6,
            "one is off, one more, and the pods' memory"
        );
    }

    #[test]
    fn soft_thresholds_have_their_grace_and_both_their_least_reclaim() {
        let fields = "evictionHard: {memory.available: 10%}\n\
                      evictionSoft: {memory.available: 1.5Gi}\n\
                      evictionSoftGracePeriod: {memory.available: 1m30s}\n\
                      evictionMinimumReclaim: {memory.available: 0Mi}\n\
                      evictionMaxPodGracePeriod: 60\nevictionPressureTransitionPeriod: 30s\n";
        let config = read(fields).unwrap().0;
        let graces: Vec<_> = config.thresholds.iter().map(|t| t.grace.as_secs()).collect();
        assert_eq!(graces, [0, 90, 0], "hard, soft, and the hard one for all pods");
        assert!(config.thresholds.iter().all(|t| t.min_reclaim.is_some()));
        assert_eq!(config.thresholds[0].value, Amount::Share(0.1));
        assert_eq!((config.max_pod_grace.as_secs(), config.transition.as_secs()), (60, 30));
    }

    #[test]
    fn faults_are_upstreams() {
        for (fields, fault) in [
            (
                "evictionHard: {memory.free: 1Gi}",
                "evictionHard: unsupported eviction signal memory.free",
            ),
            (
                "evictionHard: {memory.available: -1%}",
                "evictionHard: eviction percentage threshold memory.available must be >= 0%: -1%",
            ),
            (
                "evictionHard: {nodefs.available: 101%}",
                "evictionHard: eviction percentage threshold nodefs.available must be <= 100%: 101%",
            ),
            (
                "evictionHard: {memory.available: '0'}",
                "evictionHard: eviction threshold memory.available must be positive: 0",
            ),
            (
                "evictionHard: {pid.available: much}",
                "evictionHard: pid.available: \"much\" is no quantity",
            ),
            (
                "evictionHard: {pid.available: NaN%}",
                "evictionHard: pid.available: \"NaN%\" is no percentage",
            ),
            (
                "evictionSoft: {memory.available: 1Gi}",
                "evictionSoft: grace period must be specified for the soft eviction threshold memory.available",
            ),
            (
                "evictionSoftGracePeriod: {memory.available: -1s}",
                "evictionSoftGracePeriod: invalid eviction grace period specified: -1s, must be a positive value",
            ),
            (
                "evictionSoftGracePeriod: {memory.available: soon}",
                "evictionSoftGracePeriod: \"soon\" is no duration",
            ),
            (
                "evictionMinimumReclaim: {memory.available: 0%}",
                "evictionMinimumReclaim: eviction percentage minimum reclaim memory.available must be positive: 0%",
            ),
            (
                "evictionMinimumReclaim: {memory.available: '-1'}",
                "evictionMinimumReclaim: negative eviction minimum reclaim specified for memory.available",
            ),
        ] {
            assert_eq!(read(&format!("{fields}\n")).unwrap_err(), [fault], "{fields}");
        }
        let told = read("evictionHard: {containerfs.available: 5%}\n").unwrap();
        assert!(told.0.thresholds.is_empty() && told.1.len() == 1, "{told:?}");
    }
}
