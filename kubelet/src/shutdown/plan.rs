//! Who ends when: pods by priority, in the order in which they go. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::qos;

/// The pods of this priority and more, up to the next bucket's, and how long they have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// The least priority; the first bucket has those below it, too.
    pub priority: i32,
    /// How long the pods may take; a pod's own grace is what it has where that is shorter.
    pub grace: Duration,
}

/// How the node goes down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    buckets: Vec<Bucket>,
}

impl Config {
    /// By these buckets, in any order. Without one the node goes down at once.
    pub fn new(mut buckets: Vec<Bucket>) -> Self {
        buckets.sort_by_key(|bucket| bucket.priority);
        Self { buckets }
    }

    /// All pods have `total`, of which the critical ones have the last part (`shutdownGracePeriod`,
    /// `shutdownGracePeriodCriticalPods`). Parts of seconds do not count; nothing is asked where
    /// `total` is zero.
    pub fn of_periods(total: Duration, critical: Duration) -> Self {
        if total.is_zero() {
            return Self::default();
        }
        let seconds = |duration: Duration| Duration::from_secs(duration.as_secs());
        let others = seconds(total.saturating_sub(critical));
        Self::new(vec![
            Bucket { priority: 0, grace: others },
            Bucket { priority: qos::CRITICAL_PRIORITY, grace: seconds(critical) },
        ])
    }

    /// Whether nothing is asked.
    pub fn is_off(&self) -> bool {
        self.buckets.is_empty()
    }

    /// The buckets, the least priority first.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// How long all buckets take at the most.
    pub fn total(&self) -> Duration {
        self.buckets.iter().fold(Duration::ZERO, |sum, bucket| sum.saturating_add(bucket.grace))
    }

    /// The place of the bucket that `pod` is in.
    pub(super) fn place(&self, pod: &Pod) -> usize {
        let priority = priority(pod);
        let at_most = self.buckets.partition_point(|bucket| bucket.priority <= priority);
        at_most.saturating_sub(1)
    }
}

/// `Differs:` one of the system's classes counts without its number, too, which only the API server fills
/// in: upstream ends such a static pod among the first.
fn priority(pod: &Pod) -> i32 {
    let Some(spec) = &pod.spec else { return 0 };
    spec.priority.unwrap_or(match spec.priority_class_name.as_deref() {
        Some("system-cluster-critical") => qos::CRITICAL_PRIORITY,
        Some("system-node-critical") => qos::CRITICAL_PRIORITY + 1000,
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(priority: Option<i32>) -> Pod {
        let spec = json!({"containers": [], "priority": priority});
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_file_need_not_say_the_number_of_its_class() {
        let config = Config::of_periods(seconds(30), seconds(10));
        for (class, place) in
            [("system-node-critical", 1), ("system-cluster-critical", 1), ("other", 0)]
        {
            let mut pod = pod(None);
            pod.spec.as_mut().unwrap().priority_class_name = Some(class.to_owned());
            assert_eq!(config.place(&pod), place, "{class}");
        }
    }

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn a_pod_is_in_the_bucket_whose_priority_it_reaches() {
        let bucket = |priority| Bucket { priority, grace: seconds(1) };
        let config = Config::new(vec![bucket(100_000), bucket(-5), bucket(1000)]);
        let order: Vec<_> = config.buckets().iter().map(|bucket| bucket.priority).collect();
        assert_eq!(order, [-5, 1000, 100_000]);
        for (priority, place) in [
            (Some(i32::MIN), 0),
            (Some(-6), 0),
            (Some(-5), 0),
            (None, 0),
            (Some(999), 0),
            (Some(1000), 1),
            (Some(99_999), 1),
            (Some(100_000), 2),
            (Some(2_000_001_000), 2),
        ] {
            assert_eq!(config.place(&pod(priority)), place, "{priority:?}");
        }
    }

    #[test]
    fn two_periods_are_two_buckets() {
        let config = Config::of_periods(seconds(30), seconds(10));
        let expected = [
            Bucket { priority: 0, grace: seconds(20) },
            Bucket { priority: 2_000_000_000, grace: seconds(10) },
        ];
        assert_eq!(config.buckets(), expected);
        assert_eq!(config.total(), seconds(30));
        for (priority, place) in [(-1, 0), (1_999_999_999, 0), (2_000_000_000, 1)] {
            assert_eq!(config.place(&pod(Some(priority))), place, "{priority}");
        }
        let parts = Config::of_periods(Duration::from_millis(3700), Duration::from_millis(1500));
        let graces: Vec<_> = parts.buckets().iter().map(|bucket| bucket.grace.as_secs()).collect();
        assert_eq!(graces, [2, 1]);
        assert!(Config::of_periods(Duration::ZERO, Duration::ZERO).is_off());
    }
}
