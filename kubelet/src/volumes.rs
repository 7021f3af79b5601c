//! A pod's volumes on the host: what they should hold, and making it so.
//!
//! `desired` (pure, from the pod and what was fetched for it) → [`observe`](set_up) → [`plan`] →
//! apply. [`set_up`] does the last three, for a first start as well as for an update of the source,
//! and doing it twice does no harm. [`tear_down`] removes a pod's directory. All paths are upstream's
//! below `<root>/pods/<uid>`.
//!
//! Kinds: `emptyDir`, `hostPath`, `configMap`, `secret`, `downwardAPI`, `projected`, and `nfs`, claims bound
//! to `hostPath`, `local` and `nfs` volumes; an `image` is the runtime's to mount. Others are turned
//! away before ([`crate::unsupported`]). Functions that touch the disk block: call them from a
//! blocking thread. What lies in a volume is the container's and not trusted: nothing here follows a
//! link or crosses a mount inside one (CVE-2017-1002101, CVE-2017-1002102, CVE-2021-25741).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Node, Pod, Volume};

use crate::container_config::MountedVolume;
use crate::downward::{DownwardError, Facts};
use crate::objects::{Fetched, ObjectError};

mod atomic;
mod claim;
mod desired;
mod directory;
mod empty_dir;
mod env_file;
mod host_path;
mod layout;
mod nfs;
mod ownership;
mod payload;
mod removal;
mod sub_path;
mod tmpfs;
mod tokens;
mod trust;

pub use desired::{Desired, Medium, desired};
pub use empty_dir::usage_bytes;
pub use env_file::read_env_files;
pub use host_path::HostPathType;
pub use layout::{PodDirectory, VolumePlugin};
pub use nfs::{Export, Helper, NfsError};
pub use ownership::{ChangePolicy, FsGroup};
pub use payload::{Payload, PayloadFile};
pub use removal::TeardownError;
pub use sub_path::{SubPathError, ensure_sub_paths};
pub use tokens::{Token, TokenRequest, Tokens, refresh_after, refresh_is_due, token_requests};

/// What volumes are filled from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The pod and the node, for the downward API.
    pub facts: Facts<'a>,
    /// ConfigMaps and Secrets.
    pub fetched: &'a Fetched,
    /// Service account tokens.
    pub tokens: &'a Tokens,
    /// The node, which not every persistent volume can be reached from; any will do where absent.
    pub node: Option<&'a Node>,
}

/// Why a volume cannot be had; its text follows `MountVolume.SetUp failed for volume "x" : `.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A ConfigMap or Secret is missing.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A ConfigMap has no such key.
    #[error("configmap references non-existent config key: {0}")]
    MissingConfigKey(String),
    /// A Secret has no such key.
    #[error("references non-existent secret key: {0}")]
    MissingSecretKey(String),
    /// A field or resource cannot be read.
    #[error(transparent)]
    Downward(#[from] DownwardError),
    /// A token could not be had.
    #[error("failed to fetch token: {0}")]
    Token(String),
    /// Several sources of a projected volume failed.
    #[error("[{}]", texts(.0))]
    Several(Vec<VolumeError>),
    /// A path that a file may not have.
    #[error("invalid path {path:?}: {why}")]
    InvalidPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A value that the field does not have.
    #[error("invalid {field}: {value:?}")]
    InvalidValue {
        /// The field.
        field: &'static str,
        /// The value.
        value: String,
    },
    /// What the volume names is not there, or not as the pod says: a claim, a host path, huge pages,
    /// trust bundles.
    #[error("{0}")]
    Source(String),
    /// An export could not be mounted.
    #[error(transparent)]
    Nfs(#[from] NfsError),
    /// A volume without a source, or with one that is not supported.
    #[error("no volume plugin matched")]
    Unsupported,
    /// The host failed.
    #[error("{operation} {}: {source}", path.display())]
    Host {
        /// What was being done.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn texts(errors: &[VolumeError]) -> String {
    let texts: Vec<_> = errors.iter().map(VolumeError::to_string).collect();
    texts.join(", ")
}

impl VolumeError {
    fn host(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Host { operation, path, source }
    }
}

/// The message of a `FailedMount` event.
pub fn failed_mount_message(volume: &str, error: &VolumeError) -> String {
    format!("MountVolume.SetUp failed for volume {volume:?} : {error}")
}

/// What is there of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Its directory exists.
    pub present: bool,
    /// A file system of its own is mounted there.
    pub mounted: bool,
    /// It holds what it should.
    pub current: bool,
}

/// A step towards a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make its directory.
    MakeDirectory,
    /// Mount a tmpfs on it.
    MountTmpfs,
    /// Set mode and ownership of an empty directory for the pod.
    Prepare,
    /// Write its files, switched over in one step.
    WritePayload,
    /// Check a host path, and make it where its type says so.
    CheckHostPath,
}

/// What leads from what is there to what should be.
pub fn plan(desired: &Desired, observed: Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    let on_tmpfs = match desired {
        Desired::HostPath { .. } => return vec![Action::CheckHostPath],
        Desired::Image | Desired::Nfs(_) => return Vec::new(),
        Desired::Local { .. } => {
            let prepare = (!observed.present).then_some([Action::Prepare, Action::MakeDirectory]);
            return prepare.into_iter().flatten().collect();
        }
        Desired::EmptyDir { medium, .. } => *medium != Medium::Disk,
        Desired::Files { tmpfs_bytes, .. } => tmpfs_bytes.is_some(),
    };
    let fresh = !observed.present || (on_tmpfs && !observed.mounted);
    if !observed.present {
        actions.push(Action::MakeDirectory);
    }
    if on_tmpfs && !observed.mounted {
        actions.push(Action::MountTmpfs);
    }
    match desired {
        Desired::EmptyDir { .. } if fresh || !observed.current => actions.push(Action::Prepare),
        Desired::Files { .. } if fresh || !observed.current => actions.push(Action::WritePayload),
        _ => {}
    }
    actions
}

/// Brings one volume into its desired state. Blocks; idempotent.
pub fn set_up(
    directory: &PodDirectory,
    name: &str,
    desired: &Desired,
) -> Result<MountedVolume, VolumeError> {
    if *desired == Desired::Image {
        // Pulled and mounted with each container.
        return Ok(MountedVolume::path(PathBuf::new(), true));
    }
    let Some(plugin) = desired.plugin() else {
        return host_path::set_up(desired);
    };
    let path = directory.volume_path(plugin, name)?;
    if let Desired::Nfs(export) = desired {
        Helper::of_host()?.set_up(directory, &path, export)?;
        return Ok(MountedVolume::path(path, export.read_only()));
    }
    let observed = observe(&path, desired)?;
    for action in plan(desired, observed) {
        apply(directory, &path, desired, action)?;
    }
    if let Desired::Local { path, read_only, .. } = desired {
        return claim::local(path, *read_only);
    }
    Ok(MountedVolume::labelled(path, matches!(desired, Desired::Files { .. })))
}

fn observe(path: &std::path::Path, desired: &Desired) -> Result<Observed, VolumeError> {
    let fail = VolumeError::host("look at", path);
    let opened = match directory::open_path(path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Observed { present: false, mounted: false, current: false });
        }
        Err(error) => return Err(fail(error)),
    };
    let current = match desired {
        Desired::Files { payload, .. } => atomic::holds(&opened, payload),
        Desired::EmptyDir { .. } => empty_dir::is_prepared(&opened),
        Desired::HostPath { .. } | Desired::Local { .. } | Desired::Image | Desired::Nfs(_) => {
            Ok(false)
        }
    };
    let look =
        || Ok(Observed { present: true, mounted: tmpfs::is_mount(&opened)?, current: current? });
    look().map_err(fail)
}

fn apply(
    pod: &PodDirectory,
    path: &std::path::Path,
    desired: &Desired,
    action: Action,
) -> Result<(), VolumeError> {
    let open = || directory::open_path(path).map_err(VolumeError::host("open", path));
    match (action, desired) {
        (Action::MakeDirectory, _) => {
            directory::make_all(pod.root(), path).map_err(VolumeError::host("make", path))
        }
        (Action::MountTmpfs, _) => tmpfs::mount(&open()?, desired.tmpfs_options())
            .map_err(VolumeError::host("mount a tmpfs on", path)),
        (Action::Prepare, Desired::EmptyDir { medium, fs_group }) => {
            empty_dir::prepare(&open()?, medium, fs_group.as_ref())
                .map_err(VolumeError::host("prepare", path))
        }
        (Action::Prepare, Desired::Local { path, fs_group, read_only: false }) => match fs_group {
            Some(group) => claim::give(path, group),
            None => Ok(()),
        },
        (Action::WritePayload, Desired::Files { payload, .. }) => {
            atomic::write(&open()?, payload).map_err(VolumeError::host("write the files of", path))
        }
        (Action::CheckHostPath | Action::Prepare | Action::WritePayload, _) => Ok(()),
    }
}

/// The desired state of all volumes of a pod, by name.
pub fn desired_volumes(
    pod: &Pod,
    sources: &Sources<'_>,
) -> BTreeMap<String, Result<Desired, VolumeError>> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.map(|volume: &Volume| (volume.name.clone(), desired(pod, volume, sources))).collect()
}

/// Removes a pod's directory with its volumes. Goes on past failures and returns them all; what could
/// not be removed is left. Blocks; succeeds when nothing is there.
pub fn tear_down(directory: &PodDirectory) -> Result<(), Vec<TeardownError>> {
    removal::remove_pod(directory)
}

#[cfg(test)]
mod tests;
