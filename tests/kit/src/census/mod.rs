//! The leak census: all that berth can leave behind on a host, counted before and after.
//!
//! Owns what is looked at and how two counts differ. It shares no code with berth: it reads the
//! kernel's own files and asks `ip`, `bridge`, `nft` and `conntrack`. What it finds is sorted text
//! without anything that changes by itself, so that equal states are equal JSON. It sees the mount
//! and network namespace, and the processes, of whoever takes it: run it in private ones
//! ([`crate::namespaces`]) where other programs work on the same machine.
//!
//! Serves RELIABILITY 2.0: run before and after every case, the difference must be empty.

mod files;
mod network;
mod proc;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where berth's things are on this host.
#[derive(Debug, Clone)]
pub struct Scope {
    /// State directories: every entry below them counts, leases and images included.
    pub roots: Vec<PathBuf>,
    /// How the names of our cgroups begin; all below such a cgroup counts.
    pub cgroups: Vec<String>,
    /// How the names of our executables begin; such processes count, and all in our cgroups.
    pub programs: Vec<String>,
    /// The pods' addresses: connection tracking entries for them count.
    pub pod_networks: Vec<IpNet>,
}

impl Default for Scope {
    fn default() -> Self {
        let roots = ["/run/berth", "/var/lib/berth", "/var/log/pods", "/var/log/containers"];
        Scope {
            roots: roots.map(PathBuf::from).to_vec(),
            cgroups: ["kubepods", "berth"].map(str::to_owned).to_vec(),
            programs: vec!["berth".to_owned()],
            pod_networks: Vec::new(),
        }
    }
}

/// What was found, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Census {
    kinds: BTreeMap<String, BTreeSet<String>>,
}

/// One kind of thing and how it is counted.
type Counter = fn(&Scope) -> Result<BTreeSet<String>>;

const KINDS: [(&str, Counter); 17] = [
    ("mounts", files::mounts),
    ("mounts of shims", files::shim_mounts),
    ("namespaces", proc::namespaces),
    ("links", network::links),
    ("addresses", network::addresses),
    ("routes", network::routes),
    ("rules", network::rules),
    ("neighbours", network::neighbours),
    ("nft", network::nft),
    ("conntrack", network::conntrack),
    ("cgroups", files::cgroups),
    ("files", files::state),
    ("processes", proc::processes),
    ("loop devices", files::loop_devices),
    ("shared memory", files::shared_memory),
    ("message queues", files::message_queues),
    ("keyrings", proc::keyrings),
];

impl Census {
    /// Counts everything. Takes a few tens of milliseconds; changes nothing.
    ///
    /// # Errors
    /// A kind that cannot be counted: an incomplete census is none.
    pub fn take(scope: &Scope) -> Result<Census> {
        let mut census = Census::default();
        for (kind, count) in KINDS {
            let found = count(scope).with_context(|| format!("count {kind}"))?;
            census.kinds.insert(kind.to_owned(), found);
        }
        Ok(census)
    }

    /// What `after` has and this has not, and the other way round.
    pub fn difference(&self, after: &Census) -> Difference {
        let missing_from = |from: &Census, of: &Census| {
            let entries = of.kinds.iter().flat_map(|(kind, entries)| {
                let known = from.kinds.get(kind);
                entries
                    .iter()
                    .filter(move |entry| !known.is_some_and(|known| known.contains(*entry)))
                    .map(move |entry| (kind.clone(), entry.clone()))
            });
            entries.collect()
        };
        Difference { left: missing_from(self, after), gone: missing_from(after, self) }
    }

    /// Takes another census until nothing is left or `patience` is over: what is torn down in the
    /// background gets that long.
    ///
    /// # Panics
    /// Something is left, or gone.
    pub fn assert_nothing_left(&self, scope: &Scope, patience: std::time::Duration) {
        let deadline = std::time::Instant::now() + patience;
        loop {
            let after = Census::take(scope).expect("take a census");
            let difference = self.difference(&after);
            if difference.is_empty() {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "the census differs:\n{difference}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    #[cfg(test)]
    fn of(entries: &[(&str, &str)]) -> Census {
        let mut census = Census::default();
        for (kind, entry) in entries {
            census.kinds.entry((*kind).to_owned()).or_default().insert((*entry).to_owned());
        }
        census
    }
}

/// How two counts differ: kind and entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// There now and not before.
    pub left: Vec<(String, String)>,
    /// There before and not now.
    pub gone: Vec<(String, String)>,
}

impl Difference {
    /// Whether the two are the same.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty() && self.gone.is_empty()
    }

    /// Without the kinds that are not to be looked at.
    pub fn without(mut self, kinds: &[String]) -> Self {
        self.left.retain(|(kind, _)| !kinds.contains(kind));
        self.gone.retain(|(kind, _)| !kinds.contains(kind));
        self
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, entries) in [("left", &self.left), ("gone", &self.gone)] {
            for (kind, entry) in entries {
                writeln!(f, "{word}: {kind}: {entry}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_left_and_what_is_missing_is_gone() {
        let before = Census::of(&[("links", "lo"), ("links", "eth0"), ("files", "/a")]);
        let after = Census::of(&[("links", "lo"), ("links", "veth1"), ("files", "/a")]);
        let difference = before.difference(&after);
        assert_eq!(difference.to_string(), "left: links: veth1\ngone: links: eth0\n");
        assert!(before.difference(&before).is_empty());
    }

    #[test]
    fn a_kind_that_one_census_lacks_is_compared_all_the_same() {
        let after = Census::of(&[("nft", "table ip x")]);
        assert_eq!(Census::default().difference(&after).left.len(), 1);
        assert_eq!(after.difference(&Census::default()).gone.len(), 1);
    }

    #[test]
    fn the_json_of_equal_states_is_equal() {
        let one = Census::of(&[("b", "2"), ("a", "1")]);
        let other = Census::of(&[("a", "1"), ("b", "2")]);
        let json = serde_json::to_string(&one).unwrap();
        assert_eq!(json, serde_json::to_string(&other).unwrap());
        assert_eq!(serde_json::from_str::<Census>(&json).unwrap(), one);
    }
}
