//! What a KubeletConfiguration says of the host's shutdown, in upstream's bounds. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_kubelet::shutdown::{Bucket, Config};
use serde_json::json;

use super::documents::KubeletConfiguration;
use super::{Settings, duration};

const TOTAL: &str = "shutdownGracePeriod";
const CRITICAL: &str = "shutdownGracePeriodCriticalPods";
const BY_PRIORITY: &str = "shutdownGracePeriodByPodPriority";

/// Reads how pods are ended when the host goes down.
pub(super) fn resolve(given: &KubeletConfiguration) -> Result<Config, Vec<String>> {
    let mut faults = Vec::new();
    let mut keep = |result: Result<Duration, String>| {
        result.map_err(|fault| faults.push(fault)).unwrap_or_default()
    };
    let total = keep(period(TOTAL, given.shutdown_grace_period.as_deref()));
    let critical = keep(period(CRITICAL, given.shutdown_grace_period_critical_pods.as_deref()));
    if faults.is_empty() && critical > total {
        faults.push(format!("{CRITICAL}: {critical:?} must be <= {TOTAL}, {total:?}"));
    }
    let buckets = &given.shutdown_grace_period_by_pod_priority;
    let has_periods = !total.is_zero() || !critical.is_zero();
    if !buckets.is_empty() && has_periods {
        faults.push(format!("{BY_PRIORITY}: cannot be there beside {TOTAL} and {CRITICAL}"));
    }
    let mut priorities = BTreeSet::new();
    let mut read = Vec::new();
    for bucket in buckets {
        let (priority, seconds) = (bucket.priority, bucket.shutdown_grace_period_seconds);
        // `Differs:` upstream takes both, and gives no pod the second of two buckets.
        match u64::try_from(seconds) {
            Ok(seconds) => read.push(Bucket { priority, grace: Duration::from_secs(seconds) }),
            Err(_) => faults.push(format!("{BY_PRIORITY}: {seconds} seconds are less than none")),
        }
        if !priorities.insert(priority) {
            faults.push(format!("{BY_PRIORITY}: priority {priority} is there twice"));
        }
    }
    match (faults.is_empty(), read.is_empty()) {
        (false, _) => Err(faults),
        (true, false) => Ok(Config::new(read)),
        (true, true) => Ok(Config::of_periods(total, critical)),
    }
}

/// Nothing, or at least a second.
fn period(field: &str, text: Option<&str>) -> Result<Duration, String> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let is_negative = text.strip_prefix('-').and_then(duration).is_some();
    let period = match duration(text) {
        Some(period) => period,
        None if is_negative => Duration::from_nanos(1),
        None => return Err(format!("{field}: {text:?} is no duration")),
    };
    match period.is_zero() || period >= Duration::from_secs(1) {
        true => Ok(period),
        false => Err(format!("{field}: {text} must be either zero or otherwise >= 1 sec")),
    }
}

/// What is in force, for `/configz`.
pub(super) fn in_force(given: &KubeletConfiguration, settings: &mut Settings) {
    for (field, text) in [
        (TOTAL, &given.shutdown_grace_period),
        (CRITICAL, &given.shutdown_grace_period_critical_pods),
    ] {
        let period = text.as_deref().and_then(duration).unwrap_or_default();
        settings.in_force[field] = json!(format!("{}s", period.as_secs_f64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::documents;

    fn read(fields: &str) -> Result<Vec<(i32, u64)>, Vec<String>> {
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let given = documents::parse(&format!("{head}{fields}")).unwrap().kubelet;
        let config = resolve(&given)?;
        let buckets = config.buckets().iter();
        Ok(buckets.map(|bucket| (bucket.priority, bucket.grace.as_secs())).collect())
    }

    #[test]
    fn what_is_said_is_read_and_zero_is_nothing() {
        let critical = 2_000_000_000;
        for (fields, buckets) in [
            ("", vec![]),
            ("shutdownGracePeriod: 0s\nshutdownGracePeriodCriticalPods: 0s\n", vec![]),
            ("shutdownGracePeriodByPodPriority: []\n", vec![]),
            (
                "shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n",
                vec![(0, 20), (critical, 10)],
            ),
            ("shutdownGracePeriod: 1m\n", vec![(0, 60), (critical, 0)]),
            (
                "shutdownGracePeriod: 1s\nshutdownGracePeriodCriticalPods: 1s\n",
                vec![(0, 0), (critical, 1)],
            ),
            (
                "shutdownGracePeriodByPodPriority:\n\
                 - {priority: 100000, shutdownGracePeriodSeconds: 10}\n\
                 - {priority: -1, shutdownGracePeriodSeconds: 0}\n\
                 - {shutdownGracePeriodSeconds: 60}\n",
                vec![(-1, 0), (0, 60), (100_000, 10)],
            ),
        ] {
            assert_eq!(read(fields), Ok(buckets), "{fields}");
        }
    }

    #[test]
    fn faults_are_upstreams() {
        let bucket = "{priority: 5, shutdownGracePeriodSeconds: 1}";
        for (fields, fault) in [
            (
                "shutdownGracePeriod: 1s\nshutdownGracePeriodCriticalPods: 2s\n".to_owned(),
                "shutdownGracePeriodCriticalPods: 2s must be <= shutdownGracePeriod, 1s",
            ),
            (
                "shutdownGracePeriodCriticalPods: 2s\n".to_owned(),
                "shutdownGracePeriodCriticalPods: 2s must be <= shutdownGracePeriod, 0ns",
            ),
            (
                "shutdownGracePeriod: 1ms\n".to_owned(),
                "shutdownGracePeriod: 1ms must be either zero or otherwise >= 1 sec",
            ),
            (
                "shutdownGracePeriod: -5s\n".to_owned(),
                "shutdownGracePeriod: -5s must be either zero or otherwise >= 1 sec",
            ),
            (
                "shutdownGracePeriod: 9s\nshutdownGracePeriodCriticalPods: 0.9s\n".to_owned(),
                "shutdownGracePeriodCriticalPods: 0.9s must be either zero or otherwise >= 1 sec",
            ),
            (
                "shutdownGracePeriod: soon\n".to_owned(),
                "shutdownGracePeriod: \"soon\" is no duration",
            ),
            (
                format!("shutdownGracePeriod: 9s\nshutdownGracePeriodByPodPriority: [{bucket}]\n"),
                "shutdownGracePeriodByPodPriority: cannot be there beside shutdownGracePeriod and \
                 shutdownGracePeriodCriticalPods",
            ),
            (
                format!("shutdownGracePeriodByPodPriority: [{bucket}, {bucket}]\n"),
                "shutdownGracePeriodByPodPriority: priority 5 is there twice",
            ),
            (
                "shutdownGracePeriodByPodPriority: [{shutdownGracePeriodSeconds: -1}]\n".to_owned(),
                "shutdownGracePeriodByPodPriority: -1 seconds are less than none",
            ),
        ] {
            assert_eq!(read(&fields), Err(vec![fault.to_owned()]), "{fields}");
        }
    }
}
