//! Which namespaces a container makes, joins or shares: planned from the specification, pure.
//!
//! OCI runtime spec, `config-linux.md`, Namespaces, User namespace mappings, Offset for Time
//! Namespace; namespaces(7), user_namespaces(7), time_namespaces(7).

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use super::{Error, Result};
use crate::protocol::{PidNamespace, ShimConfig};

/// More lines than this the kernel refuses.
const MAX_MAP_LINES: usize = 340;
/// It reads a mapping in one write of less than a page.
const MAX_MAP_BYTES: usize = 4095;

/// The namespaces of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` of the child; cgroup, user and time namespaces come later or before.
    pub(crate) create: u64,
    /// The child unshares its cgroup namespace once it is in its cgroup.
    pub(crate) own_cgroup: bool,
    /// Namespaces to enter besides the sandbox's; a mount namespace is the last.
    pub(crate) join: Vec<Join>,
    pub(crate) user: User,
    pub(crate) time: Option<TimeOffsets>,
}

/// A namespace to enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) kind: LinuxNamespaceType,
    /// A path of the host, as the caller gives it.
    pub(crate) path: PathBuf,
}

/// The user namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum User {
    /// The keeper's.
    #[default]
    Shared,
    /// A new one.
    New(Mappings),
    /// One of a path; mappings, if any are given, must be those it has.
    Joined { path: PathBuf, expected: Option<Mappings> },
}

/// Which ids inside stand for which outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Mappings {
    pub(crate) uids: Vec<Range>,
    pub(crate) gids: Vec<Range>,
}

/// A line of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) inside: u32,
    pub(crate) outside: u32,
    pub(crate) size: u32,
}

/// What the clocks of a new time namespace differ by, as its file of procfs takes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TimeOffsets(pub(crate) String);

impl Namespaces {
    /// Whether the child cannot be cloned straight from its keeper.
    pub(crate) fn needs_stage(&self) -> bool {
        let joins_pid = self.join.iter().any(|join| join.kind == LinuxNamespaceType::Pid);
        joins_pid || self.time.is_some() || self.user != User::Shared
    }

    /// Whether a namespace is entered by its path.
    pub(crate) fn joins(&self, kind: LinuxNamespaceType) -> bool {
        self.join.iter().any(|join| join.kind == kind)
    }

    /// Whether the container has a new namespace or enters one by its path.
    pub(crate) fn has(&self, kind: LinuxNamespaceType) -> bool {
        // An enumeration whose numbers are those of the kernel's flags.
        self.create & kind as u64 != 0 || self.joins(kind)
    }
}

/// The text of a mapping, as procfs takes it.
pub(crate) fn lines(ranges: &[Range]) -> String {
    ranges.iter().fold(String::new(), |mut text, range| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.size);
        text
    })
}

/// The id outside that stands for one inside.
pub(crate) fn outside(ranges: &[Range], id: u32) -> Option<u32> {
    let range = ranges.iter().find(|range| id >= range.inside && id - range.inside < range.size)?;
    range.outside.checked_add(id - range.inside)
}

/// Parses a mapping; `None` where there is none.
pub(crate) fn ranges(field: &str, list: Option<&[LinuxIdMapping]>) -> Result<Option<Vec<Range>>> {
    let Some(list) = list.filter(|list| !list.is_empty()) else { return Ok(None) };
    let refuse = |reason: &str| Err(Error::invalid(field, reason));
    if list.len() > MAX_MAP_LINES {
        return refuse("has more than 340 entries");
    }
    let ranges: Vec<Range> = list
        .iter()
        .map(|m| Range { inside: m.container_id(), outside: m.host_id(), size: m.size() })
        .collect();
    let ends = |start: u32, size: u32| start.checked_add(size);
    if ranges.iter().any(|r| r.size == 0) {
        return refuse("has an entry of size 0");
    }
    if ranges.iter().any(|r| ends(r.inside, r.size).is_none() || ends(r.outside, r.size).is_none())
    {
        return refuse("has an entry that ends beyond the largest id");
    }
    if overlap(ranges.iter().map(|r| (r.inside, r.size)))
        || overlap(ranges.iter().map(|r| (r.outside, r.size)))
    {
        return refuse("has entries that overlap");
    }
    if lines(&ranges).len() > MAX_MAP_BYTES {
        return refuse("is longer than the 4095 bytes that the kernel takes");
    }
    Ok(Some(ranges))
}

fn overlap(ranges: impl Iterator<Item = (u32, u32)>) -> bool {
    let mut ranges: Vec<(u32, u32)> = ranges.collect();
    ranges.sort_unstable();
    ranges.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0)
}

/// Both mappings of something, or none.
pub(crate) fn mappings(
    (uid_field, uids): (&str, Option<&[LinuxIdMapping]>),
    (gid_field, gids): (&str, Option<&[LinuxIdMapping]>),
) -> Result<Option<Mappings>> {
    match (ranges(uid_field, uids)?, ranges(gid_field, gids)?) {
        (Some(uids), Some(gids)) => Ok(Some(Mappings { uids, gids })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Error::invalid(gid_field, format!("is missing beside {uid_field}"))),
        (None, Some(_)) => Err(Error::invalid(uid_field, format!("is missing beside {gid_field}"))),
    }
}

/// Plans the namespaces of a container.
pub(crate) fn plan(sandbox: &ShimConfig, linux: &Linux) -> Result<Namespaces> {
    use LinuxNamespaceType as N;
    let mut result = Namespaces { create: N::Mount as u64, ..Namespaces::default() };
    if sandbox.pid == PidNamespace::Container {
        result.create |= N::Pid as u64;
    }
    let mut seen = HashSet::new();
    let mut mount = None;
    let (mut user, mut time) = (None, None);
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        let field = || format!("linux.namespaces[{kind}]");
        if !seen.insert(kind) {
            return Err(Error::invalid(field(), "is given twice"));
        }
        let path = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty());
        if path.is_some_and(|path| !path.is_absolute()) {
            return Err(Error::invalid(field(), "the path is not absolute"));
        }
        let sandbox_has_it = match kind {
            N::Network => sandbox.new_network,
            N::Ipc => sandbox.new_ipc,
            N::Uts => sandbox.hostname.is_some(),
            N::Pid => sandbox.pid != PidNamespace::Host,
            N::Mount | N::Cgroup | N::User | N::Time => false,
        };
        match (kind, path) {
            _ if sandbox_has_it => {}
            (N::User, path) => user = Some(path.cloned()),
            (N::Time, None) => time = Some(()),
            (N::Cgroup, None) => result.own_cgroup = true,
            (N::Mount, Some(path)) => mount = Some(Join { kind, path: path.clone() }),
            (kind, Some(path)) => result.join.push(Join { kind, path: path.clone() }),
            (kind, None) => result.create |= kind as u64,
        }
    }
    // The one made besides is left again once what the host has is opened in it.
    result.join.extend(mount);
    result.user = plan_user(linux, user)?;
    result.time = plan_time(linux, time)?;
    Ok(result)
}

fn plan_user(linux: &Linux, namespace: Option<Option<PathBuf>>) -> Result<User> {
    let mappings = mappings(
        ("linux.uidMappings", linux.uid_mappings().as_deref()),
        ("linux.gidMappings", linux.gid_mappings().as_deref()),
    )?;
    match (namespace, mappings) {
        (None, None) => Ok(User::Shared),
        (None, Some(_)) => {
            Err(Error::invalid("linux.uidMappings", "is given without a user namespace"))
        }
        (Some(Some(path)), expected) => Ok(User::Joined { path, expected }),
        (Some(None), Some(mappings)) => Ok(User::New(mappings)),
        (Some(None), None) => {
            Err(Error::invalid("linux.uidMappings", "is needed by a new user namespace"))
        }
    }
}

fn plan_time(linux: &Linux, namespace: Option<()>) -> Result<Option<TimeOffsets>> {
    let mut clocks: Vec<_> = linux.time_offsets().iter().flatten().collect();
    let field = |clock: &str| format!("linux.timeOffsets[{clock}]");
    if namespace.is_none() {
        return match clocks.first() {
            None => Ok(None),
            Some(_) => {
                Err(Error::invalid("linux.timeOffsets", "is given without a new time namespace"))
            }
        };
    }
    clocks.sort_by_key(|(clock, _)| *clock);
    let mut text = String::new();
    for (clock, offset) in clocks {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(Error::invalid(field(clock), "is no clock that a time namespace offsets"));
        }
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            return Err(Error::invalid(field(clock), "has a second or more of nanoseconds"));
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{clock} {} {nanoseconds}", offset.secs().unwrap_or(0));
    }
    Ok(Some(TimeOffsets(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn host() -> ShimConfig {
        ShimConfig {
            user_ids: None,
            sandbox_id: String::new(),
            cgroup_root: PathBuf::new(),
            hostname: None,
            new_network: false,
            new_ipc: false,
            pid: PidNamespace::Host,
            sysctls: Default::default(),
        }
    }

    fn planned(linux: Value) -> Result<Namespaces> {
        plan(&host(), &serde_json::from_value(linux).unwrap())
    }

    fn refusal(linux: Value) -> String {
        planned(linux).unwrap_err().to_string()
    }

    #[test]
    fn new_namespaces_are_made_at_the_clone_and_a_mount_namespace_is_joined_last() {
        let plan = planned(json!({"namespaces": [
            {"type": "mount", "path": "/m"}, {"type": "pid"}, {"type": "network", "path": "/n"},
            {"type": "cgroup"}, {"type": "uts", "path": ""}
        ]}))
        .unwrap();
        let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS;
        assert_eq!(plan.create, flags as u64);
        assert!(plan.own_cgroup && !plan.needs_stage());
        let kinds: Vec<_> = plan.join.iter().map(|join| join.kind).collect();
        assert_eq!(kinds, [LinuxNamespaceType::Network, LinuxNamespaceType::Mount]);
    }

    #[test]
    fn the_sandbox_s_namespaces_come_before_those_of_the_specification() {
        let sandbox = ShimConfig { new_network: true, pid: PidNamespace::Sandbox, ..host() };
        let linux = json!({"namespaces": [{"type": "network"}, {"type": "pid", "path": "/p"}]});
        let plan = plan(&sandbox, &serde_json::from_value(linux).unwrap()).unwrap();
        assert_eq!((plan.create, plan.join.len()), (libc::CLONE_NEWNS as u64, 0));
    }

    #[test]
    fn user_and_time_namespaces_and_a_joined_pid_namespace_need_a_stage() {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        let plan = planned(json!({
            "namespaces": [{"type": "user"}, {"type": "time"}],
            "uidMappings": map, "gidMappings": map,
            "timeOffsets": {"monotonic": {"secs": -5}, "boottime": {"secs": 7, "nanosecs": 9}}
        }))
        .unwrap();
        assert!(plan.needs_stage());
        let User::New(mappings) = &plan.user else { panic!("{plan:?}") };
        assert_eq!(lines(&mappings.uids), "0 100000 65536\n");
        assert_eq!(outside(&mappings.uids, 33), Some(100_033));
        assert_eq!(outside(&mappings.uids, 65_536), None);
        assert_eq!(plan.time, Some(TimeOffsets("boottime 7 9\nmonotonic -5 0\n".to_owned())));
        assert!(
            planned(json!({"namespaces": [{"type": "pid", "path": "/p"}]})).unwrap().needs_stage()
        );
    }

    #[test]
    fn contradictions_are_refused_by_the_field_s_name() {
        let map = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
        for (linux, message) in [
            (
                json!({"namespaces": [{"type": "pid"}, {"type": "pid"}]}),
                "linux.namespaces[pid]: is given twice",
            ),
            (
                json!({"namespaces": [{"type": "user"}]}),
                "linux.uidMappings: is needed by a new user namespace",
            ),
            (
                json!({"uidMappings": map, "gidMappings": map}),
                "linux.uidMappings: is given without a user namespace",
            ),
            (
                json!({"namespaces": [{"type": "user"}], "uidMappings": map}),
                "linux.gidMappings: is missing beside linux.uidMappings",
            ),
            (
                json!({"timeOffsets": {"boottime": {"secs": 1}}}),
                "linux.timeOffsets: is given without a new time namespace",
            ),
            (
                json!({"namespaces": [{"type": "time"}], "timeOffsets": {"realtime": {"secs": 1}}}),
                "linux.timeOffsets[realtime]: is no clock that a time namespace offsets",
            ),
            (
                json!({"namespaces": [{"type": "ipc", "path": "a"}]}),
                "linux.namespaces[ipc]: the path is not absolute",
            ),
        ] {
            assert_eq!(refusal(linux), message);
        }
    }

    #[test]
    fn mappings_the_kernel_would_refuse_are_refused_before_the_clone() {
        let refused = |map: Value| {
            refusal(
                json!({"namespaces": [{"type": "user"}], "uidMappings": map, "gidMappings": map}),
            )
        };
        let many: Vec<Value> =
            (0..10_000).map(|id| json!({"containerID": id, "hostID": id, "size": 1})).collect();
        assert!(refused(Value::from(many)).contains("more than 340 entries"));
        let long: Vec<Value> = (0..300u32)
            .map(|id| json!({"containerID": 3_000_000_000u32 + id, "hostID": 3_000_000_000u32 + id, "size": 1}))
            .collect();
        assert!(refused(Value::from(long)).contains("4095 bytes"));
        let zero = json!([{"containerID": 0, "hostID": 0, "size": 0}]);
        assert!(refused(zero).contains("size 0"));
        let beyond = json!([{"containerID": 2, "hostID": 0, "size": 4_294_967_295u32}]);
        assert!(refused(beyond).contains("beyond the largest id"));
        let twice = json!([{"containerID": 0, "hostID": 10, "size": 5}, {"containerID": 4, "hostID": 20, "size": 5}]);
        assert!(refused(twice).contains("overlap"));
    }
}
