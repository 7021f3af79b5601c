//! Limits and capabilities: from the specification, and onto the process.
//!
//! capabilities(7), setrlimit(2).

use oci_spec::runtime::{Capability, PosixRlimitType, Process};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::plan::{Capabilities, Limit};
use super::{Doing, Error, Result};
use crate::protocol::ResolvedUser;

fn resource(kind: PosixRlimitType) -> Option<Resource> {
    use PosixRlimitType as T;
    Some(match kind {
        T::RlimitCpu => Resource::Cpu,
        T::RlimitFsize => Resource::Fsize,
        T::RlimitData => Resource::Data,
        T::RlimitStack => Resource::Stack,
        T::RlimitCore => Resource::Core,
        T::RlimitRss => Resource::Rss,
        T::RlimitNproc => Resource::Nproc,
        T::RlimitNofile => Resource::Nofile,
        T::RlimitMemlock => Resource::Memlock,
        T::RlimitAs => Resource::As,
        T::RlimitLocks => Resource::Locks,
        T::RlimitSigpending => Resource::Sigpending,
        T::RlimitMsgqueue => Resource::Msgqueue,
        T::RlimitNice => Resource::Nice,
        T::RlimitRtprio => Resource::Rtprio,
        T::RlimitRttime => Resource::Rttime,
    })
}

/// The limits of a process.
pub(super) fn limits(process: &Process) -> Result<Vec<Limit>> {
    process
        .rlimits()
        .iter()
        .flatten()
        .map(|limit| {
            let name = limit.typ().to_string();
            let field = || format!("process.rlimits[{name}]");
            let unknown = || Error::invalid(field(), "is unknown");
            let resource = resource(limit.typ()).ok_or_else(unknown)?;
            if limit.soft() > limit.hard() {
                return Err(Error::invalid(field(), "the soft limit exceeds the hard one"));
            }
            Ok(Limit { resource, soft: limit.soft(), hard: limit.hard(), name })
        })
        .collect()
}

/// The number of a capability.
fn number(capability: Capability) -> u32 {
    use Capability as C;
    match capability {
        C::Chown => 0,
        C::DacOverride => 1,
        C::DacReadSearch => 2,
        C::Fowner => 3,
        C::Fsetid => 4,
        C::Kill => 5,
        C::Setgid => 6,
        C::Setuid => 7,
        C::Setpcap => 8,
        C::LinuxImmutable => 9,
        C::NetBindService => 10,
        C::NetBroadcast => 11,
        C::NetAdmin => 12,
        C::NetRaw => 13,
        C::IpcLock => 14,
        C::IpcOwner => 15,
        C::SysModule => 16,
        C::SysRawio => 17,
        C::SysChroot => 18,
        C::SysPtrace => 19,
        C::SysPacct => 20,
        C::SysAdmin => 21,
        C::SysBoot => 22,
        C::SysNice => 23,
        C::SysResource => 24,
        C::SysTime => 25,
        C::SysTtyConfig => 26,
        C::Mknod => 27,
        C::Lease => 28,
        C::AuditWrite => 29,
        C::AuditControl => 30,
        C::Setfcap => 31,
        C::MacOverride => 32,
        C::MacAdmin => 33,
        C::Syslog => 34,
        C::WakeAlarm => 35,
        C::BlockSuspend => 36,
        C::AuditRead => 37,
        C::Perfmon => 38,
        C::Bpf => 39,
        C::CheckpointRestore => 40,
    }
}

/// The capability sets of a process; none where the specification names none.
pub(super) fn capabilities(process: &Process) -> Capabilities {
    let set = |list: &Option<std::collections::HashSet<Capability>>| {
        let bits = list.iter().flatten().fold(0, |bits, one| bits | 1u64 << number(*one));
        CapabilitySet::from_bits_retain(bits)
    };
    let Some(sets) = process.capabilities() else {
        let none = CapabilitySet::empty();
        return Capabilities {
            bounding: none,
            effective: none,
            permitted: none,
            ambient: none,
            inheritable: none,
        };
    };
    Capabilities {
        bounding: set(sets.bounding()),
        effective: set(sets.effective()),
        permitted: set(sets.permitted()),
        ambient: set(sets.ambient()),
        inheritable: set(sets.inheritable()),
    }
}

/// Sets resource limits.
pub(super) fn set_limits(limits: &[Limit]) -> Result<()> {
    let infinite = |value: u64| (value != u64::MAX).then_some(value);
    for limit in limits {
        let new = Rlimit { current: infinite(limit.soft), maximum: infinite(limit.hard) };
        rustix::process::setrlimit(limit.resource, new).doing(|| {
            format!("set process.rlimits[{}] to {}:{}", limit.name, limit.soft, limit.hard)
        })?;
    }
    Ok(())
}

/// What remains to be set after the filter is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remaining {
    sets: CapabilitySets,
    ambient: CapabilitySet,
}

/// Becomes the user, dropping from the bounding set what it must never get. Until [`finish`] the
/// process keeps its final capabilities and, where `keep` says so, one more to load the filter with.
/// Inheritable ones that the bounding set lacks are refused, as the kernel refuses them.
pub(super) fn become_user(
    user: &ResolvedUser,
    wanted: &Capabilities,
    keep: CapabilitySet,
    warnings: &mut Vec<String>,
) -> Result<Remaining> {
    let own = rustix::thread::capabilities(None).doing(|| "read capabilities")?.permitted;
    let missing = (wanted.permitted | wanted.effective).difference(own);
    if !missing.is_empty() {
        warnings.push(format!("capabilities {:#x} are not available on this host", missing.bits()));
    }
    let ambient = wanted.ambient & wanted.permitted & wanted.inheritable & own;
    for (name, _) in wanted.ambient.difference(ambient).iter_names() {
        let reason = "operation not permitted";
        warnings.push(format!("can't raise ambient capability CAP_{name}: {reason}"));
    }
    drop_bounding(wanted.bounding)?;
    rustix::thread::set_keep_capabilities(true).doing(|| "keep capabilities")?;
    let groups: Vec<_> = user.supplemental_groups.iter().map(|gid| gid_of(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).doing(|| "set supplementary groups")?;
    let gid = gid_of(user.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .doing(|| format!("become group {}", user.gid))?;
    let uid = rustix::fs::Uid::from_raw(user.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .doing(|| format!("become user {}", user.uid))?;
    rustix::thread::set_keep_capabilities(false).doing(|| "stop keeping capabilities")?;
    let permitted = wanted.permitted & own;
    let sets = CapabilitySets {
        effective: wanted.effective & permitted,
        permitted,
        inheritable: CapabilitySet::empty(),
    };
    let mut interim = sets;
    // The kernel refuses what is beyond the bounding set. What it takes is given up again in the end.
    interim.inheritable = wanted.inheritable & own;
    interim.permitted |= keep & own;
    interim.effective |= keep & own;
    rustix::thread::set_capabilities(None, interim).doing(|| "set capabilities")?;
    Ok(Remaining { sets, ambient })
}

/// The last change of capabilities.
pub(super) fn finish(remaining: Remaining) -> Result<()> {
    let mut sets = remaining.sets;
    // Ambient ones must be inheritable while they are raised; the kernel clears them with those, so
    // such containers keep just these inheritable.
    sets.inheritable = remaining.ambient;
    rustix::thread::set_capabilities(None, sets).doing(|| "set capabilities")?;
    for capability in remaining.ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .doing(|| "raise ambient capabilities")?;
    }
    Ok(())
}

fn gid_of(gid: u32) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(gid)
}

fn drop_bounding(kept: CapabilitySet) -> Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Beyond the kernel's last capability.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error).doing(|| "drop capabilities from the bounding set"),
        }
    }
    Ok(())
}
