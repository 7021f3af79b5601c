//! From a container's configuration, its image and the host's facts to an OCI runtime specification.
//!
//! Pure: [`plan`] reads nothing and decides everything. What the pod says is policy; what the image
//! says ([`ImageConfig`]) is untrusted and passes a validator here, and none of it chooses a host
//! resource. The shim resolves the user and adds the root file system. OCI runtime specification,
//! `config.md` and `config-linux.md`; defaults as containerd's CRI plugin has them.

mod capabilities;
mod devices;
mod mounts;
mod process;
mod seccomp;
mod signal;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use berth_oci::protocol::{UserIds, UserSelector};
use oci_spec::runtime::{
    Capability, Linux, LinuxDevice, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, LinuxSeccomp, Root, Spec,
};

use super::selinux::Labels;
use crate::cgroup::{Controller, limits};
use crate::images::config::{ImageConfig, printable_user};
use crate::interface::{
    ContainerConfig, NamespaceMode, Propagation, RuntimeError, SandboxConfig, Security,
    SupplementalGroupsPolicy,
};

pub(super) use self::mounts::{Content, PreparedMount, SandboxFiles};
pub(super) use self::seccomp::parse as parse_seccomp;

/// What the host allows.
#[derive(Debug, Clone, Default)]
pub(super) struct HostFacts {
    /// What the agent may pass on: its bounding set.
    pub(super) capabilities: HashSet<Capability>,
    /// Every device node, for privileged containers.
    pub(super) devices: Vec<LinuxDevice>,
    /// The controllers whose limits are enforced.
    pub(super) controllers: BTreeSet<Controller>,
}

/// All that a specification is made from.
pub(super) struct Input<'a> {
    pub(super) config: &'a ContainerConfig,
    pub(super) sandbox: &'a SandboxConfig,
    pub(super) image: ImageConfig,
    pub(super) mounts: &'a [PreparedMount],
    pub(super) files: &'a SandboxFiles,
    pub(super) host: &'a HostFacts,
    /// The profile of [`crate::interface::Seccomp::Localhost`], already read.
    pub(super) local_seccomp: Option<LinuxSeccomp>,
    /// The AppArmor profile, which is loaded.
    pub(super) app_armor: Option<String>,
    /// The SELinux labels, on a host that has them.
    pub(super) labels: Option<Labels>,
    pub(super) user_namespace: Option<UserNamespace>,
}

/// The user namespace of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UserNamespace {
    /// Where it is pinned.
    pub(super) path: PathBuf,
    pub(super) ids: UserIds,
}

/// What the shim is told.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) spec: Spec,
    pub(super) user: UserSelector,
    pub(super) stop_signal: i32,
}

/// `/proc` and `/sys` files that tell or change the host; as containerd 2.2 and Docker 28 have them.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Makes the specification.
///
/// # Errors
/// [`RuntimeError::Create`] for what the pod or the image asks and cannot have.
pub(super) fn plan(input: Input<'_>) -> Result<Planned, RuntimeError> {
    make(input).map_err(RuntimeError::Create)
}

fn make(input: Input<'_>) -> Result<Planned, String> {
    let security = &input.config.security;
    if let Some(namespace) = &input.user_namespace {
        check_ids(security, namespace.ids.count)?;
    }
    let granted = capabilities::grant(security, &input.host.capabilities)?;
    let image = input.image;
    let user = user(input.config, image.user.clone().validate(printable_user)?);
    let stop_signal = signal::stop_signal(image.stop_signal);
    let asked = process::Image {
        entrypoint: image.entrypoint,
        cmd: image.cmd,
        env: image.env,
        working_dir: image.working_dir,
    };
    let hostname = &input.sandbox.hostname;
    let mut process = process::plan(input.config, hostname, asked, &granted)?;
    process.set_apparmor_profile(input.app_armor);
    let (process_label, mount_label) =
        input.labels.map_or((None, None), |labels| (labels.process, Some(labels.files)));
    process.set_selinux_label(process_label);
    let mapping = input.user_namespace.as_ref().map(mapping).transpose()?;
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(input.user_namespace.as_ref())))
        .set_uid_mappings(mapping.clone())
        .set_gid_mappings(mapping)
        .set_resources(Some(resources(input.config, input.host)))
        .set_seccomp(seccomp::choose(security, input.local_seccomp, &granted)?)
        .set_devices((security.privileged).then(|| input.host.devices.clone()))
        .set_mount_label(mount_label)
        .set_rootfs_propagation(root_propagation(input.mounts));
    if security.privileged || security.unmasked_proc {
        linux.set_masked_paths(None).set_readonly_paths(None);
    } else {
        let owned = |paths: &[&str]| Some(paths.iter().map(|p| (*p).to_owned()).collect());
        linux.set_masked_paths(owned(&MASKED)).set_readonly_paths(owned(&READ_ONLY));
    }
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(security.read_only_rootfs));
    let mut spec = Spec::default();
    spec.set_root(Some(root))
        .set_process(Some(process))
        .set_hostname(None)
        .set_mounts(Some(mounts::plan(input.config, input.sandbox, input.mounts, input.files)?))
        .set_linux(Some(linux));
    Ok(Planned { spec, user, stop_signal })
}

fn user(config: &ContainerConfig, image_user: String) -> UserSelector {
    let security = &config.security;
    UserSelector {
        user: security.run_as_user.map_or(image_user, |uid| uid.to_string()),
        group: security.run_as_group,
        supplemental_groups: security.supplemental_groups.clone(),
        strict_groups: security.supplemental_groups_policy == SupplementalGroupsPolicy::Strict,
    }
}

/// An id that stands for none of the host's cannot be had; the kernel would only say EINVAL.
fn check_ids(security: &Security, count: u32) -> Result<(), String> {
    let user = security.run_as_user.map(|id| ("runAsUser", id));
    let group = security.run_as_group.map(|id| ("runAsGroup", id));
    let others = security.supplemental_groups.iter().map(|id| ("group", *id));
    match user.into_iter().chain(group).chain(others).find(|(_, id)| *id >= count) {
        None => Ok(()),
        Some((field, id)) => {
            Err(format!("{field} {id} is not one of the {count} ids of the pod's user namespace"))
        }
    }
}

fn mapping(namespace: &UserNamespace) -> Result<Vec<LinuxIdMapping>, String> {
    let UserIds { first, count } = namespace.ids;
    let mapping = LinuxIdMappingBuilder::default().container_id(0u32).host_id(first).size(count);
    Ok(vec![mapping.build().map_err(|error| error.to_string())?])
}

/// Mount and cgroup are the container's own; the sandbox has the others.
fn namespaces(user: Option<&UserNamespace>) -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Mount};
    let own = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    let mut namespaces: Vec<_> = [Mount, Cgroup].map(own).into();
    if let Some(user) = user {
        let mut joined = own(LinuxNamespaceType::User);
        joined.set_path(Some(user.path.clone()));
        namespaces.push(joined);
    }
    namespaces
}

fn resources(config: &ContainerConfig, host: &HostFacts) -> LinuxResources {
    let limits = limits::plan(&config.resources, &host.controllers);
    let unified: HashMap<String, String> = limits.into_iter().map(|l| (l.file, l.value)).collect();
    let mut resources = LinuxResources::default();
    resources
        .set_devices(Some(devices::rules(config.security.privileged)))
        .set_unified((!unified.is_empty()).then_some(unified));
    resources
}

/// Mount events must cross the root's own mount for a mount inside it to see them.
fn root_propagation(mounts: &[PreparedMount]) -> Option<String> {
    let widest = mounts.iter().map(|mount| mount.propagation).max_by_key(|p| match p {
        Propagation::Private => 0,
        Propagation::HostToContainer => 1,
        Propagation::Bidirectional => 2,
    });
    match widest {
        None | Some(Propagation::Private) => None,
        Some(Propagation::HostToContainer) => Some("rslave".to_owned()),
        Some(Propagation::Bidirectional) => Some("rshared".to_owned()),
    }
}

/// Whether the pod has a network of its own, and with it files that describe it.
fn has_own_network(sandbox: &SandboxConfig) -> bool {
    sandbox.network == NamespaceMode::Pod
}

#[cfg(test)]
mod tests;
