//! How the kernel runs a process: scheduler, priority of input and output, processors, memory nodes,
//! execution domain. From the specification, and onto the calling process.
//!
//! OCI runtime spec, `config.md`, Linux Process; `config-linux.md`, Memory policy, Personality;
//! sched_setattr(2), ioprio_set(2), sched_setaffinity(2), set_mempolicy(2), personality(2).

use std::io;

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};
use rustix::thread::CpuSet;

use super::{Doing, Error, Result};
use crate::sys::{self, SchedulingAttributes};

/// Numbers of a list of processors or nodes reach up to here.
const MAX_NUMBER: usize = CpuSet::MAX_CPU - 1;
const RESET_ON_FORK: u64 = 0x01;
const SCHED_DEADLINE: u32 = 6;
const PER_LINUX: u64 = 0;
const PER_LINUX32: u64 = 8;

/// How a process is run; what is absent stays as the keeper has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Placement {
    scheduling: Option<SchedulingAttributes>,
    /// Whether the cgroup is given processors of its own.
    has_processors: bool,
    /// As ioprio_set(2) takes it.
    io_priority: Option<u32>,
    /// Of a further process: where it starts, and where it stays.
    pub(super) first_processors: Option<Vec<usize>>,
    last_processors: Option<Vec<usize>>,
    memory: Option<MemoryPolicy>,
    persona: Option<u64>,
}

impl Placement {
    /// Whether a child of the process would be scheduled otherwise than itself.
    pub(super) fn ends_at_clone(&self) -> bool {
        self.scheduling.is_some_and(|scheduling| scheduling.flags & RESET_ON_FORK != 0)
    }

    /// The processors that a further process starts on, as a hexadecimal mask.
    pub(crate) fn first_mask(&self) -> Option<String> {
        let first = self.first_processors.as_ref()?;
        let digit = |place: usize| {
            let bits = first.iter().filter(|processor| **processor / 4 == place);
            format!("{:x}", bits.fold(0u8, |digit, processor| digit | 1 << (processor % 4)))
        };
        Some((0..=first.iter().max()? / 4).rev().map(digit).collect())
    }

    /// What failed with `error`. Deadlines are for processes that may run on every processor.
    fn failed_scheduling(&self, error: &io::Error) -> &'static str {
        let has_deadline = self.scheduling.is_some_and(|it| it.policy == SCHED_DEADLINE);
        if has_deadline && self.has_processors && error.kind() == io::ErrorKind::PermissionDenied {
            // As runc says it, and the field.
            return "set process.scheduler: process scheduler can't be used together with \
                    AllowedCPUs (linux.resources.cpu.cpus)";
        }
        "set process.scheduler"
    }
}

/// A policy by which memory is taken from nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MemoryPolicy {
    /// With its flags, as set_mempolicy(2) takes it.
    mode: i32,
    nodes: Vec<usize>,
}

/// Reads the placement of a process.
pub(super) fn plan(process: &Process, linux: Option<&Linux>) -> Result<Placement> {
    let affinity = process.exec_cpu_affinity().as_ref();
    let processors = |text: Option<&String>, name: &str| {
        let field = format!("process.execCPUAffinity.{name}");
        let text = text.filter(|text| !text.is_empty());
        text.map(|text| numbers(&field, text)).transpose()
    };
    let first = affinity.and_then(|affinity: &ExecCPUAffinity| affinity.initial().as_ref());
    let last = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_ref());
    Ok(Placement {
        scheduling: process.scheduler().as_ref().map(scheduling).transpose()?,
        has_processors: linux.is_some_and(has_processors),
        io_priority: io_priority(process)?,
        first_processors: processors(first, "initial")?,
        last_processors: processors(last, "final")?,
        memory: linux.map(memory).transpose()?.flatten(),
        persona: linux.map(persona).transpose()?.flatten(),
    })
}

fn has_processors(linux: &Linux) -> bool {
    let cpu = linux.resources().as_ref().and_then(|resources| resources.cpu().as_ref());
    cpu.and_then(|cpu| cpu.cpus().as_ref()).is_some_and(|cpus| !cpus.is_empty())
}

fn scheduling(scheduler: &Scheduler) -> Result<SchedulingAttributes> {
    use LinuxSchedulerPolicy as P;
    let refuse = |name: &str, reason: String| {
        Err(Error::invalid(format!("process.scheduler.{name}"), reason))
    };
    let policy = *scheduler.policy();
    let (nice, priority) = (scheduler.nice().unwrap_or(0), scheduler.priority().unwrap_or(0));
    if !(-20..=19).contains(&nice) {
        return refuse("nice", format!("{nice} is not within -20..19"));
    }
    let is_real_time = matches!(policy, P::SchedFifo | P::SchedRr);
    let priority = match u32::try_from(priority) {
        Ok(priority) if priority == 0 || is_real_time && priority <= 99 => priority,
        _ => return refuse("priority", format!("{priority} is none that the policy has")),
    };
    let times = [scheduler.runtime(), scheduler.deadline(), scheduler.period()];
    let [runtime, deadline, period] = times.map(|time| time.unwrap_or(0));
    if policy != P::SchedDeadline && runtime | deadline | period != 0 {
        return refuse(
            "runtime",
            "is for the policy SCHED_DEADLINE, as deadline and period".into(),
        );
    }
    Ok(SchedulingAttributes {
        policy: match policy {
            P::SchedOther => 0,
            P::SchedFifo => 1,
            P::SchedRr => 2,
            P::SchedBatch => 3,
            P::SchedIso => 4,
            P::SchedIdle => 5,
            P::SchedDeadline => SCHED_DEADLINE,
        },
        flags: scheduler
            .flags()
            .iter()
            .flatten()
            .fold(0, |bits, flag| bits | scheduler_flag(*flag)),
        nice,
        priority,
        runtime,
        deadline,
        period,
    })
}

fn scheduler_flag(flag: LinuxSchedulerFlag) -> u64 {
    use LinuxSchedulerFlag as F;
    match flag {
        F::SchedResetOnFork => RESET_ON_FORK,
        F::SchedFlagReclaim => 0x02,
        F::SchedFlagDLOverrun => 0x04,
        F::SchedFlagKeepPolicy => 0x08,
        F::SchedFlagKeepParams => 0x10,
        F::SchedFlagUtilClampMin => 0x20,
        F::SchedFlagUtilClampMax => 0x40,
    }
}

fn io_priority(process: &Process) -> Result<Option<u32>> {
    let Some(priority) = process.io_priority() else { return Ok(None) };
    let class: u32 = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(priority.priority()) {
        Ok(level) if level < 8 => Ok(Some(class << 13 | level)),
        _ => {
            let reason = format!("{} is not within 0..7", priority.priority());
            Err(Error::invalid("process.ioPriority.priority", reason))
        }
    }
}

fn memory(linux: &Linux) -> Result<Option<MemoryPolicy>> {
    use MemoryPolicyFlagType as F;
    use MemoryPolicyModeType as M;
    let Some(policy) = linux.memory_policy() else { return Ok(None) };
    let mode = match policy.mode() {
        M::MpolDefault => 0,
        M::MpolPreferred => 1,
        M::MpolBind => 2,
        M::MpolInterleave => 3,
        M::MpolLocal => 4,
        M::MpolPreferredMany => 5,
        M::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |bits, flag| {
        bits | match flag {
            F::MpolFNumaBalancing => 1 << 13,
            F::MpolFRelativeNodes => 1 << 14,
            F::MpolFStaticNodes => 1 << 15,
        }
    });
    let field = "linux.memoryPolicy.nodes";
    let text = policy.nodes().as_ref().filter(|text| !text.is_empty());
    let nodes = text.map(|text| numbers(field, text)).transpose()?.unwrap_or_default();
    match policy.mode() {
        M::MpolDefault | M::MpolLocal if !nodes.is_empty() => {
            Err(Error::invalid(field, "is given for a mode without nodes"))
        }
        M::MpolBind | M::MpolInterleave | M::MpolPreferredMany | M::MpolWeightedInterleave
            if nodes.is_empty() =>
        {
            Err(Error::invalid(field, "is missing"))
        }
        _ => Ok(Some(MemoryPolicy { mode: mode | flags, nodes })),
    }
}

fn persona(linux: &Linux) -> Result<Option<u64>> {
    let Some(personality) = linux.personality() else { return Ok(None) };
    if let Some(flag) = personality.flags().iter().flatten().next() {
        let reason = format!("{flag:?} is unknown: the specification names no flag");
        return Err(Error::invalid("linux.personality.flags", reason));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => PER_LINUX,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    }))
}

/// The numbers of a list like `0-3,7`.
fn numbers(field: &str, text: &str) -> Result<Vec<usize>> {
    let refuse = |reason: String| Err(Error::invalid(field, reason));
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(first) || !digits(last) {
            return refuse(format!("{text:?} is no list of numbers and ranges"));
        }
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last <= MAX_NUMBER => {
                numbers.extend(first..=last);
            }
            (Ok(first), Ok(last)) if first > last => {
                return refuse(format!("{part} ends before it begins"));
            }
            _ => return refuse(format!("{part} reaches beyond {MAX_NUMBER}")),
        }
    }
    Ok(numbers)
}

/// Applies what needs privileges that the container's user may not have. A further process' last
/// processors are its alone.
pub(super) fn apply(placement: &Placement) -> Result<()> {
    if let Some(attributes) = &placement.scheduling
        && let Err(error) = sys::set_scheduling(attributes)
    {
        let operation = placement.failed_scheduling(&error);
        return Err(error).doing(|| operation);
    }
    if let Some(priority) = placement.io_priority {
        sys::set_io_priority(priority).doing(|| "set process.ioPriority")?;
    }
    if let Some(policy) = &placement.memory {
        sys::set_memory_policy(policy.mode, &policy.nodes).doing(|| "set linux.memoryPolicy")?;
    }
    if let Some(persona) = placement.persona {
        sys::set_personality(persona).doing(|| "set linux.personality")?;
    }
    Ok(())
}

/// Puts a further process where it stays, once it is in its cgroup.
pub(super) fn settle(placement: &Placement) -> Result<()> {
    match (&placement.first_processors, &placement.last_processors) {
        (_, Some(processors)) => set(processors, "final"),
        (Some(_), None) => Ok(()),
        (None, None) => {
            spread();
            Ok(())
        }
    }
}

/// Lets this process run on all processors that its cgroup has, whatever its keeper is confined to.
pub(super) fn spread() {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|processor| all.set(processor));
    // Refused, it runs where its keeper runs.
    let _ = rustix::thread::sched_setaffinity(None, &all);
}

/// Runs this process on the processors that a further process starts on, until the guard is dropped.
pub(super) fn start_on(placement: &Placement) -> Result<Option<Elsewhere>> {
    let Some(processors) = &placement.first_processors else { return Ok(None) };
    let before = rustix::thread::sched_getaffinity(None).doing(|| "look at the processors")?;
    set(processors, "initial")?;
    Ok(Some(Elsewhere { before }))
}

fn set(processors: &[usize], name: &str) -> Result<()> {
    let mut set = CpuSet::new();
    for processor in processors {
        set.set(*processor);
    }
    rustix::thread::sched_setaffinity(None, &set)
        .doing(|| format!("set process.execCPUAffinity.{name}"))
}

/// Goes back to the processors of before.
pub(super) struct Elsewhere {
    before: CpuSet,
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // What it had before it may have again.
        let _ = rustix::thread::sched_setaffinity(None, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn planned(process: Value, linux: Value) -> Result<Placement> {
        let mut base = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/"});
        base.as_object_mut().unwrap().extend(process.as_object().unwrap().clone());
        let (process, _) = crate::spec::read_process(base).unwrap();
        plan(&process, Some(&serde_json::from_value(linux).unwrap()))
    }

    fn refusal(process: Value, linux: Value) -> String {
        planned(process, linux).unwrap_err().to_string()
    }

    #[test]
    fn what_is_asked_for_has_the_kernel_s_numbers() {
        let placement = planned(
            json!({
                "scheduler": {"policy": "SCHED_RR", "priority": 9, "flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]},
                "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 3},
                "execCPUAffinity": {"initial": "0-2,5", "final": "1"}
            }),
            json!({
                "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
                "personality": {"domain": "LINUX32"}
            }),
        );
        let placement = placement.unwrap();
        let scheduling = placement.scheduling.unwrap();
        assert_eq!((scheduling.policy, scheduling.priority, scheduling.flags), (2, 9, 5));
        assert_eq!(placement.io_priority, Some(3 << 13 | 3));
        assert_eq!(placement.first_processors, Some(vec![0, 1, 2, 5]));
        assert_eq!(placement.first_mask().as_deref(), Some("27"));
        assert_eq!(placement.memory, Some(MemoryPolicy { mode: 2 | 1 << 15, nodes: vec![0] }));
        assert_eq!(placement.persona, Some(PER_LINUX32));
        assert_eq!(planned(json!({}), json!({})).unwrap(), Placement::default());
    }

    #[test]
    fn a_refused_deadline_names_the_processors_that_the_cgroup_has() {
        let deadline =
            json!({"policy": "SCHED_DEADLINE", "runtime": 3, "deadline": 4, "period": 5});
        let few = json!({"resources": {"cpu": {"cpus": "0"}}});
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        for (scheduler, linux, error, named) in [
            (&deadline, &few, &refused, true),
            (&deadline, &few, &io::Error::from(io::ErrorKind::InvalidInput), false),
            (&deadline, &json!({"resources": {"cpu": {"cpus": ""}}}), &refused, false),
            (&json!({"policy": "SCHED_BATCH"}), &few, &refused, false),
        ] {
            let placement = planned(json!({"scheduler": scheduler}), linux.clone()).unwrap();
            let failed = placement.failed_scheduling(error);
            assert!(failed.starts_with("set process.scheduler"), "{failed}");
            assert_eq!(failed.contains("linux.resources.cpu.cpus"), named, "{failed}");
        }
    }

    #[test]
    fn what_the_kernel_has_not_is_refused_by_the_field_s_name() {
        for (process, field) in [
            (
                json!({"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}),
                "process.scheduler.nice: ",
            ),
            (
                json!({"scheduler": {"policy": "SCHED_OTHER", "priority": 1}}),
                "process.scheduler.priority: ",
            ),
            (
                json!({"scheduler": {"policy": "SCHED_FIFO", "priority": 100}}),
                "process.scheduler.priority: ",
            ),
            (
                json!({"scheduler": {"policy": "SCHED_FIFO", "runtime": 1}}),
                "process.scheduler.runtime: ",
            ),
            (
                json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}),
                "process.ioPriority.priority: ",
            ),
            (json!({"execCPUAffinity": {"initial": "3-1"}}), "process.execCPUAffinity.initial: "),
            (json!({"execCPUAffinity": {"final": "0,,1"}}), "process.execCPUAffinity.final: "),
            (
                json!({"execCPUAffinity": {"final": "99999999999999999999"}}),
                "process.execCPUAffinity.final: ",
            ),
            (json!({"execCPUAffinity": {"final": "+1"}}), "process.execCPUAffinity.final: "),
        ] {
            let refusal = refusal(process, json!({}));
            assert!(refusal.starts_with(field), "{refusal}");
        }
        for (linux, field) in [
            (json!({"memoryPolicy": {"mode": "MPOL_BIND"}}), "linux.memoryPolicy.nodes: "),
            (
                json!({"memoryPolicy": {"mode": "MPOL_LOCAL", "nodes": "0"}}),
                "linux.memoryPolicy.nodes: ",
            ),
            (
                json!({"personality": {"domain": "LINUX", "flags": ["x"]}}),
                "linux.personality.flags: ",
            ),
        ] {
            let refusal = refusal(json!({}), linux);
            assert!(refusal.starts_with(field), "{refusal}");
        }
    }
}
