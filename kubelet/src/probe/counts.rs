//! How often probes were run, with what result and how fast: what `/metrics/probes` tells. A pod's
//! counts go with its worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::Kind;

/// The upper bounds of the histogram's buckets, in seconds; Prometheus' own.
pub const BOUNDS: [f64; 11] = crate::meters::USUAL;

/// The counts of all pods. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Counts(Arc<Mutex<Vec<Weak<OfPod>>>>);

/// The counts of a pod's probes.
#[derive(Debug)]
pub struct OfPod {
    namespace: String,
    name: String,
    uid: String,
    probes: Mutex<BTreeMap<(String, Kind), Tally>>,
}

/// What came of one probe so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// How often it succeeded.
    pub successful: u64,
    /// How often it failed.
    pub failed: u64,
    /// How many of those that succeeded took at most as long as each of [`BOUNDS`], and longer than the
    /// one before. As upstream, failures are not timed.
    pub buckets: [u64; BOUNDS.len()],
    /// How long they took together.
    pub seconds: f64,
}

/// A probe's counts, with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// The container's name.
    pub container: String,
    /// Which probe.
    pub kind: Kind,
    /// The counts.
    pub tally: Tally,
}

impl Counts {
    /// Begins to count for a pod, until what is returned is dropped.
    pub fn of_pod(&self, (namespace, name, uid): (&str, &str, &str)) -> Arc<OfPod> {
        let pod = Arc::new(OfPod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            probes: Mutex::default(),
        });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|pod| pod.strong_count() > 0);
        all.push(Arc::downgrade(&pod));
        pod
    }

    /// All counts, by namespace, pod, container and kind.
    pub fn rows(&self) -> Vec<Row> {
        let pods: Vec<_> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        let mut rows = Vec::new();
        for pod in pods {
            let probes = pod.probes.lock().unwrap_or_else(PoisonError::into_inner);
            rows.extend(probes.iter().map(|((container, kind), tally)| Row {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
                container: container.clone(),
                kind: *kind,
                tally: tally.clone(),
            }));
        }
        let key =
            |row: &Row| (row.namespace.clone(), row.pod.clone(), row.container.clone(), row.kind);
        rows.sort_by_key(key);
        rows
    }
}

impl OfPod {
    /// Counts one probe, which could be run.
    pub fn note(&self, (container, kind): (&str, Kind), successful: bool, took: Duration) {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = probes.entry((container.to_owned(), kind)).or_default();
        if !successful {
            tally.failed += 1;
            return;
        }
        tally.successful += 1;
        let seconds = took.as_secs_f64();
        tally.seconds += seconds;
        if let Some(at) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            tally.buckets[at] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_counted_as_long_as_their_pod_is_there() {
        let counts = Counts::default();
        let pod = counts.of_pod(("ns", "p", "u"));
        let other = counts.of_pod(("ns", "a", "v"));
        let probe = ("c", Kind::Liveness);
        pod.note(probe, true, Duration::from_millis(5));
        pod.note(probe, true, Duration::from_secs(60));
        pod.note(probe, false, Duration::from_secs(1));
        other.note(("c", Kind::Startup), true, Duration::from_millis(6));
        let rows = counts.rows();
        assert_eq!([rows[0].pod.as_str(), rows[1].pod.as_str()], ["a", "p"]);
        assert_eq!((rows[0].tally.successful, rows[0].tally.buckets[1]), (1, 1));
        let tally = &rows[1].tally;
        assert_eq!((tally.successful, tally.failed), (2, 1));
        assert_eq!(tally.buckets.iter().sum::<u64>(), 1, "a minute is beyond the last bound");
        drop(other);
        assert_eq!(counts.rows().len(), 1);
    }
}
