//! From the specification to a plan: pure and total. What berth does not offer is refused by name.
//!
//! The plan holds parsed, ordered steps; [`super::child`] carries them out without further decisions.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceType, LinuxNamespaceType as N, Process, Spec};
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use super::hooks::{self, Hooks};
use super::interfaces::{self, Interface};
use super::mount_options::{self, Source};
use super::mount_plan::{self, Mount};
use super::namespaces::{self, Namespaces, User};
use super::placement::{self, Placement};
use super::sysctl::{self, OwnNamespaces, Sysctl};
use super::{Error, Result, credentials};
use crate::protocol::{CreateContainer, Rootfs, ShimConfig, UserSelector};
use crate::sys::MountAttributes;

/// A container, ready to be carried out.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) namespaces: Namespaces,
    pub(crate) rootfs: Rootfs,
    pub(crate) root_read_only: bool,
    /// What the host's mounts become for the child, and in the end its root.
    pub(crate) root_propagation: Option<MountAttributes>,
    pub(crate) mounts: Vec<Mount>,
    /// The SELinux label that new file systems get.
    pub(crate) mount_label: Option<String>,
    /// Absent where `/dev` is bound from the host.
    pub(crate) devices: Option<Vec<Device>>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) read_only: Vec<PathBuf>,
    pub(crate) sysctls: Vec<Sysctl>,
    /// Network devices of the host that become its own.
    pub(crate) interfaces: Vec<Interface>,
    /// Set only in a UTS namespace of its own.
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) user: UserSelector,
    pub(crate) process: ProcessPlan,
    pub(crate) hooks: Hooks,
}

impl Plan {
    /// Whether device nodes are the host's, bound: in a user namespace none can be made.
    pub(super) fn binds_devices(&self) -> bool {
        self.namespaces.user != User::Shared
    }

    /// The host's id of who is to own the container's cgroup: of its user, where that is one of a user
    /// namespace with a cgroup namespace and a hierarchy to write to. OCI runtime spec,
    /// `config-linux.md`, Cgroup ownership.
    pub(crate) fn cgroup_owner(&self) -> Option<u32> {
        let mappings = match &self.namespaces.user {
            User::New(mappings) | User::Joined { expected: Some(mappings), .. } => mappings,
            User::Shared | User::Joined { expected: None, .. } => return None,
        };
        let may_write = self.namespaces.own_cgroup
            && self.mounts.iter().any(mount_plan::Mount::is_writable_hierarchy);
        let inside = self.user.user.parse().ok().filter(|_| may_write)?;
        namespaces::outside(&mappings.uids, inside)
    }
}

/// A process of a container: the first, or a further one.
#[derive(Debug, Clone)]
pub(crate) struct ProcessPlan {
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) working_directory: PathBuf,
    pub(crate) umask: u32,
    pub(crate) limits: Vec<Limit>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) capabilities: Capabilities,
    pub(crate) no_new_privileges: bool,
    pub(crate) placement: Placement,
    pub(crate) apparmor: Option<String>,
    pub(crate) selinux: Option<String>,
}

/// A resource limit.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    pub(crate) name: String,
    pub(crate) resource: Resource,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Capability sets. Differs: the process' inheritable set is never more than its ambient one
/// (CVE-2022-29162).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) bounding: CapabilitySet,
    pub(crate) effective: CapabilitySet,
    pub(crate) permitted: CapabilitySet,
    pub(crate) ambient: CapabilitySet,
    /// What of the ambient ones may be raised, and nothing else.
    pub(crate) inheritable: CapabilitySet,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) kind: DeviceKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What a device node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// Devices every container has, and their minor numbers of major 1 and 5.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Plans a container of a sandbox.
pub(crate) fn plan(sandbox: &ShimConfig, request: &CreateContainer) -> Result<Plan> {
    let spec = &request.spec;
    refuse_unsupported(spec)?;
    let default_linux = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&default_linux);
    let namespaces = namespaces::plan(sandbox, linux)?;
    if !linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == N::Mount) {
        // What it mounts would stay on the host.
        return Err(Error::invalid("linux.namespaces", "has no mount namespace"));
    }
    let mut mounts = mount_plan::plan(spec, &namespaces.user)?;
    if let Rootfs::Directory(path) = &request.rootfs {
        mount_plan::relate(&mut mounts, path)?;
    }
    let dev_is_bound = mounts
        .iter()
        .any(|mount| mount.destination == Path::new("dev") && mount.options.source != Source::New);
    let devices = if dev_is_bound { None } else { Some(devices(linux)?) };
    let paths = |list: &Option<Vec<String>>| unique(list.iter().flatten().map(PathBuf::from));
    let own_uts = namespaces.has(N::Uts);
    let own = OwnNamespaces {
        network: sandbox.new_network || namespaces.has(N::Network),
        ipc: sandbox.new_ipc || namespaces.has(N::Ipc),
        uts: sandbox.hostname.is_some() || own_uts,
    };
    let process = spec.process().as_ref();
    let process = process.ok_or_else(|| Error::invalid("process", "is missing"))?;
    let interfaces = interfaces::plan(linux, &namespaces)?;
    Ok(Plan {
        namespaces,
        rootfs: request.rootfs.clone(),
        root_read_only: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        root_propagation: root_propagation(linux)?,
        mounts,
        mount_label: label("linux.mountLabel", linux.mount_label())?,
        devices,
        masked: paths(linux.masked_paths()),
        read_only: paths(linux.readonly_paths()),
        sysctls: sysctls(linux, &own)?,
        interfaces,
        hostname: uts_name("hostname", spec.hostname(), own_uts)?,
        domainname: uts_name("domainname", spec.domainname(), own_uts)?,
        user: request.user.clone(),
        process: plan_process(process, Some(linux))?,
        hooks: hooks::plan(spec)?,
    })
}

/// Paths in their order, each once however it is written.
fn unique(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut seen = std::collections::HashSet::new();
    paths.filter(|path| seen.insert(super::rootfd::clean(path))).collect()
}

/// Plans a process from its specification.
///
/// `linux` holds what concerns all processes of its container.
pub(crate) fn plan_process(process: &Process, linux: Option<&Linux>) -> Result<ProcessPlan> {
    let arguments = process.args().clone().unwrap_or_default();
    if arguments.is_empty() {
        return Err(Error::invalid("process.args", "is empty"));
    }
    let environment = process.env().clone().unwrap_or_default();
    if arguments.iter().chain(&environment).any(|text| text.contains('\0')) {
        return Err(Error::invalid("process", "an argument or variable holds a NUL byte"));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::invalid("process.cwd", "is not an absolute path"));
    }
    Ok(ProcessPlan {
        arguments,
        environment,
        working_directory: process.cwd().clone(),
        umask: process.user().umask().unwrap_or(0o022),
        limits: credentials::limits(process)?,
        oom_score_adj: process.oom_score_adj(),
        capabilities: credentials::capabilities(process),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        placement: placement::plan(process, linux)?,
        apparmor: label("process.apparmorProfile", process.apparmor_profile())?,
        selinux: label("process.selinuxLabel", process.selinux_label())?,
    })
}

/// A label of one line, written to a file of procfs as it is.
fn label(field: &str, text: &Option<String>) -> Result<Option<String>> {
    match text.as_ref().filter(|text| !text.is_empty()) {
        Some(text) if text.chars().any(char::is_control) => {
            Err(Error::invalid(field, "holds control characters"))
        }
        text => Ok(text.cloned()),
    }
}

fn refuse(fields: &[(&str, bool)]) -> Result<()> {
    match fields.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(Error::invalid(*field, "is not supported")),
        None => Ok(()),
    }
}

fn refuse_unsupported(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    refuse(&[("linux.intelRdt", linux.intel_rdt().is_some())])
}

/// A name is set only in a UTS namespace that the host's is not.
fn uts_name(field: &str, name: &Option<String>, own: bool) -> Result<Option<String>> {
    match name.as_ref().filter(|name| !name.is_empty()) {
        Some(_) if !own => Err(Error::invalid(field, "is given without a UTS namespace")),
        name => Ok(name.cloned()),
    }
}

fn root_propagation(linux: &Linux) -> Result<Option<MountAttributes>> {
    let Some(text) = linux.rootfs_propagation().as_ref().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let parsed = mount_options::propagation(text);
    parsed
        .map(Some)
        .ok_or_else(|| Error::invalid("linux.rootfsPropagation", format!("{text} is unknown")))
}

fn devices(linux: &Linux) -> Result<Vec<Device>> {
    let mut devices: Vec<Device> = DEFAULT_DEVICES
        .iter()
        .map(|(path, major, minor)| Device {
            path: super::rootfd::clean(Path::new(path)),
            kind: DeviceKind::Character { major: *major, minor: *minor },
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for device in linux.devices().iter().flatten() {
        let field = || format!("linux.devices[{}]", device.path().display());
        let number = |value: i64, name: &str| {
            let refused = |_| Error::invalid(field(), format!("{name} {value} is out of range"));
            u32::try_from(value).map_err(refused)
        };
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character {
                major: number(device.major(), "major")?,
                minor: number(device.minor(), "minor")?,
            },
            LinuxDeviceType::B => DeviceKind::Block {
                major: number(device.major(), "major")?,
                minor: number(device.minor(), "minor")?,
            },
            LinuxDeviceType::P => DeviceKind::Fifo,
            LinuxDeviceType::A => return Err(Error::invalid(field(), "type a names no device")),
        };
        let path = super::rootfd::clean(device.path());
        devices.retain(|known| known.path != path);
        devices.push(Device {
            path,
            kind,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        });
    }
    Ok(devices)
}

fn sysctls(linux: &Linux, own: &OwnNamespaces) -> Result<Vec<Sysctl>> {
    let mut sysctls = linux
        .sysctl()
        .iter()
        .flatten()
        .map(|(name, value)| {
            let one = sysctl::parse(name, value)?;
            sysctl::require_own(&one, own).map(|()| one)
        })
        .collect::<Result<Vec<_>>>()?;
    sysctls.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sysctls)
}
