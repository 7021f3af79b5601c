//! From the resources of the specification to files and values of cgroup v2. Pure.
//!
//! Owns pids, huge pages, rdma, network and `unified`; the larger controllers have a file each.
//! Conversions are runc's of 1.3. What v2 has no file for is refused by name. OCI runtime spec,
//! `config-linux.md`, Control groups.

mod cpu;
mod io;
mod memory;

use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxResources};

pub(super) use self::memory::check_usage;
use crate::container::{Error, Result};

/// What a failed write means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tolerance {
    /// The limit is not in force.
    None,
    /// Kernels may lack the file although the controller is there.
    Absent,
    /// Written again after a later setting, which it may contradict till then.
    Early,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The specification's field, for messages.
    pub(super) field: String,
    pub(super) file: String,
    pub(super) value: String,
    pub(super) tolerance: Tolerance,
    /// The file and value to write instead where the kernel lacks the file.
    pub(super) instead: Option<(String, String)>,
}

impl Setting {
    /// A write that no specification asks for.
    pub(super) fn of_file(file: &str, value: &str) -> Self {
        Self {
            field: file.to_owned(),
            file: file.to_owned(),
            value: value.to_owned(),
            tolerance: Tolerance::None,
            instead: None,
        }
    }

    /// The controller that the file belongs to.
    pub(super) fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }

    /// Whether the value is the one that a cgroup has by itself.
    pub(super) fn is_default(&self) -> bool {
        match self.file.as_str() {
            "cpu.weight" => self.value == "100",
            // A period is something to be enforced, whatever the quota.
            "cpu.max" => self.value == cpu::DEFAULT_BANDWIDTH,
            _ => self.value == "max",
        }
    }
}

#[derive(Default)]
struct Settings(Vec<Setting>);

impl Settings {
    fn add(&mut self, field: &str, file: &str, value: impl ToString) -> &mut Setting {
        self.0.push(Setting {
            field: format!("linux.resources.{field}"),
            file: file.to_owned(),
            value: value.to_string(),
            tolerance: Tolerance::None,
            instead: None,
        });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }
}

fn refuse<T>(field: &str, reason: impl Into<String>) -> Result<T> {
    Err(Error::invalid(format!("linux.resources.{field}"), reason))
}

/// `max` for what the specification calls unlimited.
fn limit(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// The writes for `resources`, in order; `unified` comes last and wins.
pub(super) fn plan(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut settings = Settings::default();
    if let Some(cpu) = resources.cpu() {
        cpu::plan(&mut settings, cpu)?;
    }
    if let Some(memory) = resources.memory() {
        memory::plan(&mut settings, memory)?;
    }
    if let Some(pids) = resources.pids() {
        let value = pids.limit();
        // None at all could not even be the first, and systemd takes no zero.
        settings.add("pids.limit", "pids.max", limit(if value == 0 { 1 } else { value }));
    }
    if let Some(block_io) = resources.block_io() {
        io::plan(&mut settings, block_io)?;
    }
    for page in resources.hugepage_limits().iter().flatten() {
        plan_huge_pages(&mut settings, page)?;
    }
    plan_rdma(&mut settings, resources)?;
    if let Some(network) = resources.network() {
        plan_network(network)?;
    }
    plan_unified(&mut settings, resources)?;
    refuse_weight_of_idle(&settings.0)?;
    Ok(settings.0)
}

/// The kernel refuses it too, but only once systemd has been told it, and when the rest is half done.
fn refuse_weight_of_idle(settings: &[Setting]) -> Result<()> {
    let mut idle = false;
    for setting in settings {
        match setting.file.as_str() {
            "cpu.idle" => idle = setting.value.trim() != "0",
            "cpu.weight" | "cpu.weight.nice" if idle => {
                return Err(Error::invalid(&setting.field, "an idle cgroup has no weight"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn plan_huge_pages(settings: &mut Settings, page: &LinuxHugepageLimit) -> Result<()> {
    let size = page.page_size();
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return refuse("hugepageLimits", format!("page size {size:?} is malformed"));
    }
    let value = limit(page.limit());
    settings.add("hugepageLimits", &format!("hugetlb.{size}.max"), &value);
    let reserved = format!("hugetlb.{size}.rsvd.max");
    settings.add("hugepageLimits", &reserved, &value).tolerance = Tolerance::Absent;
    Ok(())
}

fn plan_rdma(settings: &mut Settings, resources: &LinuxResources) -> Result<()> {
    let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
    devices.sort_by_key(|(name, _)| name.as_str());
    for (name, limits) in devices {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return refuse("rdma", format!("device {name:?} is malformed"));
        }
        let mut value = name.clone();
        let limits = [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())];
        for (key, number) in limits {
            if let Some(number) = number {
                value.push_str(&format!(" {key}={number}"));
            }
        }
        settings.add(&format!("rdma[{name}]"), "rdma.max", value);
    }
    Ok(())
}

fn plan_network(network: &LinuxNetwork) -> Result<()> {
    if network.class_id().is_some_and(|id| id != 0) {
        return refuse("network.classID", "is not supported on cgroup v2");
    }
    if network.priorities().as_ref().is_some_and(|list| !list.is_empty()) {
        return refuse("network.priorities", "is not supported on cgroup v2");
    }
    Ok(())
}

/// Files of the hierarchy itself that limit; the others would move, freeze or kill processes.
const CORE_LIMITS: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

fn plan_unified(settings: &mut Settings, resources: &LinuxResources) -> Result<()> {
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        let reason = match file.split_once('.') {
            _ if file.contains('/') => "must be a file name (no slashes)",
            None | Some(("", _) | (_, "")) => "must be in the form CONTROLLER.PARAMETER",
            Some(("cgroup", _)) if !CORE_LIMITS.contains(&file.as_str()) => "is not a limit",
            Some(_) if file.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) => {
                // The kernel takes a line a write.
                for line in value.lines().filter(|line| !line.is_empty()) {
                    settings.add(&format!("unified[{file}]"), file, line);
                }
                continue;
            }
            Some(_) => "holds characters that no file of the kernel has",
        };
        return refuse("unified", format!("unified resource {file:?} {reason}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn try_plan(json: &str) -> Result<Vec<Setting>> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        plan(&resources)
    }

    /// `file=value` of each write.
    pub(super) fn writes(json: &str) -> Vec<String> {
        let settings = try_plan(json).unwrap();
        settings.into_iter().map(|s| format!("{}={}", s.file, s.value)).collect()
    }

    #[test]
    fn simple_limits_have_a_file_each() {
        for (json, expected) in [
            (r#"{"pids":{"limit":0}}"#, vec!["pids.max=1"]),
            (r#"{"pids":{"limit":-1}}"#, vec!["pids.max=max"]),
            (r#"{"pids":{"limit":7}}"#, vec!["pids.max=7"]),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
                vec!["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304"],
            ),
            (
                r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"mlx4_0":{"hcaObjects":1}}}"#,
                vec![
                    "rdma.max=mlx4_0 hca_object=1",
                    "rdma.max=mlx5_1 hca_handle=3 hca_object=10000",
                ],
            ),
            (r#"{"network":{"classID":0,"priorities":[]}}"#, vec![]),
            (
                r#"{"memory":{"limit":9},"unified":{"memory.max":"5","io.max":"8:0 rbps=1\n8:16 rbps=2\n"}}"#,
                vec!["memory.max=9", "io.max=8:0 rbps=1", "io.max=8:16 rbps=2", "memory.max=5"],
            ),
        ] {
            assert_eq!(writes(json), expected, "{json}");
        }
    }

    #[test]
    fn what_has_no_file_or_no_sense_is_refused_by_name() {
        for (json, field) in [
            (r#"{"network":{"classID":5}}"#, "network.classID"),
            (r#"{"network":{"priorities":[{"name":"a","priority":1}]}}"#, "network.priorities"),
            (r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#, "hugepageLimits"),
            (r#"{"rdma":{"a b":{"hcaHandles":1}}}"#, "rdma"),
            (r#"{"unified":{"cgroup.procs":"1"}}"#, "is not a limit"),
            (r#"{"unified":{"cgroup.kill":"1"}}"#, "is not a limit"),
            (r#"{"unified":{"../x.y":"1"}}"#, "no slashes"),
            (r#"{"unified":{"nodot":"1"}}"#, "CONTROLLER.PARAMETER"),
            (r#"{"unified":{".x":"1"}}"#, "CONTROLLER.PARAMETER"),
            (r#"{"unified":{"a.b c":"1"}}"#, "characters"),
        ] {
            let error = try_plan(json).unwrap_err().to_string();
            assert!(error.contains(field) && error.starts_with("linux.resources."), "{error}");
        }
    }
}
