//! From a volume of a pod's specification to what it should be on the host. Pure.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume,
    VolumeProjection,
};
use rustix::mount::MountAttrFlags;

use super::ownership::{ChangePolicy, FsGroup};
use super::payload::{Payload, PayloadFile, Selection, checked_mode};
use super::tokens::{Token, TokenRequest};
use super::{HostPathType, Sources, VolumeError, VolumePlugin, claim, nfs, tmpfs, trust};
use crate::objects::allow_missing;
use crate::quantity::Quantity;

const DEFAULT_MODE: u32 = 0o644;

/// What an `emptyDir` is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// The disk.
    Disk,
    /// Memory.
    Memory {
        /// How much it may hold.
        size_bytes: Option<u64>,
    },
    /// Huge pages.
    HugePages {
        /// The size of one.
        page_bytes: u64,
        /// How much it may hold.
        size_bytes: Option<u64>,
    },
}

/// What a volume should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// A directory of the pod's own.
    EmptyDir {
        /// What it is on.
        medium: Medium,
        /// Whose it is.
        fs_group: Option<FsGroup>,
    },
    /// A path of the host.
    HostPath {
        /// The path.
        path: PathBuf,
        /// What must be there.
        kind: HostPathType,
        /// Whether nobody writes there.
        read_only: bool,
    },
    /// A directory of the node that a claim is bound to.
    Local {
        /// Where it is.
        path: PathBuf,
        /// Whose it becomes.
        fs_group: Option<FsGroup>,
        /// Whether nobody writes there.
        read_only: bool,
    },
    /// An image, which has nothing among the pod's directories.
    Image,
    /// An export of an NFS server.
    Nfs(nfs::Export),
    /// Files that the kubelet writes.
    Files {
        /// Their kind.
        plugin: VolumePlugin,
        /// The files.
        payload: Payload,
        /// In memory, of this size, so that secrets never reach a disk.
        tmpfs_bytes: Option<u64>,
    },
}

impl Desired {
    /// The plugin whose directory the volume is in; a host path has none.
    pub fn plugin(&self) -> Option<VolumePlugin> {
        match self {
            Self::EmptyDir { .. } => Some(VolumePlugin::EmptyDir),
            Self::HostPath { .. } | Self::Image => None,
            Self::Local { .. } => Some(VolumePlugin::Local),
            Self::Nfs(_) => Some(VolumePlugin::Nfs),
            Self::Files { plugin, .. } => Some(*plugin),
        }
    }

    pub(super) fn tmpfs_options(&self) -> tmpfs::Options {
        let plain =
            tmpfs::Options { page_bytes: None, size_bytes: None, flags: MountAttrFlags::empty() };
        match self {
            Self::EmptyDir { medium: Medium::Memory { size_bytes }, .. } => {
                tmpfs::Options { size_bytes: *size_bytes, ..plain }
            }
            Self::EmptyDir { medium: Medium::HugePages { page_bytes, size_bytes }, .. } => {
                tmpfs::Options { page_bytes: Some(*page_bytes), size_bytes: *size_bytes, ..plain }
            }
            Self::Files { tmpfs_bytes, .. } => tmpfs::Options {
                size_bytes: *tmpfs_bytes,
                flags: MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
                ..plain
            },
            _ => plain,
        }
    }
}

/// What one volume of a pod should be.
pub fn desired(pod: &Pod, volume: &Volume, sources: &Sources<'_>) -> Result<Desired, VolumeError> {
    let fs_group = fs_group(pod)?;
    let gid = fs_group.map(|group| group.gid);
    if let Some(source) = &volume.empty_dir {
        return Ok(Desired::EmptyDir { medium: medium(source, sources)?, fs_group });
    }
    if let Some(source) = &volume.host_path {
        return Ok(Desired::HostPath {
            path: checked_host_path(&source.path)?,
            kind: HostPathType::parse(source.type_.as_deref())?,
            read_only: false,
        });
    }
    if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() {
        return claim::desired((pod, volume), sources, fs_group);
    }
    if let Some(source) = &volume.nfs {
        let read_only = source.read_only == Some(true);
        return Ok(Desired::Nfs(nfs::Export::parse(
            (&source.server, &source.path),
            &[],
            read_only,
        )?));
    }
    if volume.image.is_some() {
        return Ok(Desired::Image);
    }
    if let Some(source) = &volume.projected {
        let payload = projected(pod, source, sources, gid)?;
        return Ok(files_in_memory(VolumePlugin::Projected, payload, sources));
    }
    let mut payload = Payload::new(gid);
    if let Some(source) = &volume.config_map {
        let found = allow_missing(sources.fetched.config_map(&source.name), source.optional)?;
        let default_mode = checked_mode(source.default_mode, DEFAULT_MODE)?;
        payload.add_config_map(
            found,
            Selection {
                items: source.items.as_ref(),
                default_mode,
                optional: source.optional == Some(true),
            },
        )?;
        return Ok(Desired::Files { plugin: VolumePlugin::ConfigMap, payload, tmpfs_bytes: None });
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let found = allow_missing(sources.fetched.secret(name), source.optional)?;
        let default_mode = checked_mode(source.default_mode, DEFAULT_MODE)?;
        payload.add_secret(
            found,
            Selection {
                items: source.items.as_ref(),
                default_mode,
                optional: source.optional == Some(true),
            },
        )?;
        return Ok(files_in_memory(VolumePlugin::Secret, payload, sources));
    }
    if let Some(source) = &volume.downward_api {
        let mode = checked_mode(source.default_mode, DEFAULT_MODE)?;
        payload.add_downward(source.items.as_ref(), &sources.facts, mode)?;
        return Ok(files_in_memory(VolumePlugin::DownwardApi, payload, sources));
    }
    Err(VolumeError::Unsupported)
}

/// Files on a tmpfs bounded by the node's memory, or by 64 MiB where that is not known.
fn files_in_memory(plugin: VolumePlugin, payload: Payload, sources: &Sources<'_>) -> Desired {
    const FALLBACK_BYTES: u64 = 64 << 20;
    Desired::Files {
        plugin,
        payload,
        tmpfs_bytes: Some(node_memory_bytes(sources).unwrap_or(FALLBACK_BYTES)),
    }
}

fn fs_group(pod: &Pod) -> Result<Option<FsGroup>, VolumeError> {
    let spec = pod.spec.as_ref();
    let Some(context) = spec.and_then(|spec| spec.security_context.as_ref()) else {
        return Ok(None);
    };
    let Some(id) = context.fs_group else { return Ok(None) };
    let gid = match i32::try_from(id) {
        Ok(gid) if gid >= 0 => gid.unsigned_abs(),
        _ => {
            return Err(VolumeError::InvalidValue { field: "fsGroup", value: id.to_string() });
        }
    };
    let policy = match context.fs_group_change_policy.as_deref() {
        Some("OnRootMismatch") => ChangePolicy::OnRootMismatch,
        _ => ChangePolicy::Always,
    };
    Ok(Some(FsGroup { gid, policy }))
}

fn node_memory_bytes(sources: &Sources<'_>) -> Option<u64> {
    let memory = sources.facts.allocatable.get("memory")?;
    Some(memory.unsigned_value()).filter(|bytes| *bytes > 0)
}

/// In memory: the least of what the volume, the pod and the node may have.
fn medium(source: &EmptyDirVolumeSource, sources: &Sources<'_>) -> Result<Medium, VolumeError> {
    let medium = source.medium.as_deref().unwrap_or_default();
    let own = || match &source.size_limit {
        None => Ok(None),
        Some(limit) => match Quantity::try_from(limit) {
            Ok(limit) => Ok(Some(limit.unsigned_value()).filter(|bytes| *bytes > 0)),
            Err(_) => Err(VolumeError::InvalidValue { field: "sizeLimit", value: limit.0.clone() }),
        },
    };
    match medium {
        "" => return Ok(Medium::Disk),
        "Memory" => {}
        other => {
            let page_bytes = page_bytes(other, sources)?;
            return Ok(Medium::HugePages { page_bytes, size_bytes: own()? });
        }
    }
    let demand = sources.facts.demand;
    let of_pod = demand
        .limits()
        .get("memory")
        .filter(|_| demand.every_container_limits("memory"))
        .map(Quantity::unsigned_value);
    let bounds = [own()?, of_pod, node_memory_bytes(sources)];
    let size_bytes = bounds.into_iter().flatten().filter(|b| *b > 0).min();
    Ok(Medium::Memory { size_bytes })
}

/// The size of the pages of a medium of huge ones: that which it names and the pod asks for, or the one
/// that the pod asks for.
fn page_bytes(medium: &str, sources: &Sources<'_>) -> Result<u64, VolumeError> {
    const RESOURCE: &str = "hugepages-";
    let invalid = || VolumeError::InvalidValue { field: "medium", value: medium.to_owned() };
    let size_of = |text: &str| text.parse::<Quantity>().ok().map(|size| size.unsigned_value());
    let requests = sources.facts.demand.requests();
    let sizes: BTreeSet<u64> = requests
        .iter()
        .filter(|(_, amount)| amount.is_positive())
        .filter_map(|(resource, _)| size_of(resource.strip_prefix(RESOURCE)?))
        .collect();
    let fault = |why| {
        let text = format!("medium {medium:?} cannot be had: {why}");
        Err(VolumeError::Source(text))
    };
    let named = match medium.strip_prefix("HugePages").ok_or_else(invalid)? {
        "" => None,
        rest => {
            let size = rest.strip_prefix('-').and_then(size_of).filter(|bytes| *bytes > 0);
            Some(size.ok_or_else(invalid)?)
        }
    };
    match (named, sizes.len()) {
        (Some(bytes), _) if sizes.contains(&bytes) => Ok(bytes),
        (Some(_), _) => fault("the pod requests no pages of this size"),
        (None, 0) => fault("the pod requests no huge pages"),
        (None, 1) => sizes.first().copied().ok_or_else(invalid),
        (None, _) => fault("the pod requests pages of several sizes"),
    }
}

pub(super) fn checked_host_path(path: &str) -> Result<PathBuf, VolumeError> {
    let fault = |why| Err(VolumeError::InvalidPath { path: path.to_owned(), why });
    let parsed = Path::new(path);
    if !parsed.is_absolute() || path.contains('\0') {
        return fault("must be absolute");
    }
    if parsed.components().any(|c| c == Component::ParentDir) {
        return fault("must not contain '..'");
    }
    Ok(parsed.to_owned())
}

/// All sources are tried, so that the event names every fault at once.
fn projected(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    sources: &Sources<'_>,
    gid: Option<u32>,
) -> Result<Payload, VolumeError> {
    let default_mode = checked_mode(source.default_mode, DEFAULT_MODE)?;
    let mut payload = Payload::new(gid);
    let mut faults = Vec::new();
    for projection in source.sources.iter().flatten() {
        let added = add_projection(&mut payload, projection, default_mode, (pod, sources));
        faults.extend(added.err());
    }
    match faults.len() {
        0 => Ok(payload),
        1 => Err(faults.remove(0)),
        _ => Err(VolumeError::Several(faults)),
    }
}

fn add_projection(
    payload: &mut Payload,
    projection: &VolumeProjection,
    default_mode: u32,
    (pod, sources): (&Pod, &Sources<'_>),
) -> Result<(), VolumeError> {
    if let Some(source) = &projection.config_map {
        let found = allow_missing(sources.fetched.config_map(&source.name), source.optional)?;
        let selection = Selection {
            items: source.items.as_ref(),
            default_mode,
            optional: source.optional == Some(true),
        };
        payload.add_config_map(found, selection)
    } else if let Some(source) = &projection.secret {
        let found = allow_missing(sources.fetched.secret(&source.name), source.optional)?;
        let selection = Selection {
            items: source.items.as_ref(),
            default_mode,
            optional: source.optional == Some(true),
        };
        payload.add_secret(found, selection)
    } else if let Some(source) = &projection.downward_api {
        payload.add_downward(source.items.as_ref(), &sources.facts, default_mode)
    } else if let Some(source) = &projection.service_account_token {
        let file = token_file(pod, source, sources, default_mode)?;
        payload.put(&source.path, file)
    } else if let Some(source) = &projection.cluster_trust_bundle {
        let content = trust::content(source, sources.fetched.trust_bundles()?)?;
        let file = file_for_reader(pod, content, default_mode)?;
        payload.put(&source.path, file)
    } else {
        Err(VolumeError::Unsupported)
    }
}

/// A token is for its reader alone, where it is known who that is: the one user of all containers, or
/// the pod's group.
fn token_file(
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    sources: &Sources<'_>,
    default_mode: u32,
) -> Result<PayloadFile, VolumeError> {
    let token = match sources.tokens.get(&TokenRequest::from(source)) {
        Some(Token::Ready(token)) => token,
        Some(Token::Failed(why)) => return Err(VolumeError::Token(why.clone())),
        None => return Err(VolumeError::Token("it was not asked for yet".to_owned())),
    };
    file_for_reader(pod, token.clone().into_bytes(), default_mode)
}

fn file_for_reader(
    pod: &Pod,
    content: Vec<u8>,
    default_mode: u32,
) -> Result<PayloadFile, VolumeError> {
    let uid = only_user(pod);
    let has_group = fs_group(pod)?.is_some();
    Ok(PayloadFile {
        content,
        mode: match uid.is_some() || has_group {
            true => 0o600,
            false => default_mode,
        },
        uid,
    })
}

/// The user that all containers run as, where each says the same.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let init = spec.init_containers.iter().flatten();
    let mut users = init.chain(&spec.containers).map(|container| {
        let own = container.security_context.as_ref();
        own.and_then(|context| context.run_as_user).or(of_pod)
    });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}
