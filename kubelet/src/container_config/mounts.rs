//! A container's bind mounts: its volumes, and the files that the kubelet makes for it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use berth_runtime::interface::{ImageId, Mount, Propagation};
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use super::ConfigError;
use crate::environment::Environment;
use crate::expansion;

/// A volume as it is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedVolume {
    /// Where it is; empty where it is an image.
    pub host_path: PathBuf,
    /// The image that it is.
    pub image: Option<ImageId>,
    /// Whether its kind is read-only whatever the mount says.
    pub read_only: bool,
    /// Whether its kind is labelled for who mounts it.
    pub relabel: bool,
}

impl MountedVolume {
    /// A path of the host.
    pub fn path(host_path: PathBuf, read_only: bool) -> Self {
        Self { host_path, image: None, read_only, relabel: false }
    }

    /// A path whose files are labelled for who mounts them.
    pub fn labelled(host_path: PathBuf, read_only: bool) -> Self {
        Self { relabel: true, ..Self::path(host_path, read_only) }
    }
}

/// Files that the kubelet makes for a pod; an absent one is not mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFilePaths {
    /// `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// `/etc/hostname`.
    pub hostname: Option<PathBuf>,
    /// What the container writes its last words to.
    pub termination_log: Option<PathBuf>,
}

/// What mounts are made from.
#[derive(Debug, Clone, Copy)]
pub struct MountInputs<'a> {
    /// The container.
    pub container: &'a Container,
    /// The pod's volumes by name.
    pub volumes: &'a BTreeMap<String, MountedVolume>,
    /// The container's environment, for `subPathExpr`.
    pub environment: &'a Environment,
    /// The kubelet's files.
    pub files: &'a PodFilePaths,
}

/// A container's bind mounts, parents before what lies below them.
pub fn container_mounts(inputs: MountInputs<'_>) -> Result<Vec<Mount>, ConfigError> {
    let container = inputs.container;
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        mounts.push(volume_mount(mount, &inputs)?);
    }
    let read_only_root = container
        .security_context
        .as_ref()
        .and_then(|context| context.read_only_root_filesystem)
        .unwrap_or(false);
    let termination_path = container.termination_message_path.as_deref();
    let files = inputs.files;
    let kubelet_files = [
        ("/etc/hosts", &files.hosts, false),
        ("/etc/resolv.conf", &files.resolv_conf, read_only_root),
        ("/etc/hostname", &files.hostname, read_only_root),
        (
            termination_path.filter(|p| !p.is_empty()).unwrap_or("/dev/termination-log"),
            &files.termination_log,
            false,
        ),
    ];
    for (path, host_path, read_only) in kubelet_files {
        let Some(host_path) = host_path else { continue };
        let path = Path::new("/").join(path);
        if mounts.iter().any(|mount: &Mount| mount.container_path == path) {
            continue;
        }
        mounts.push(Mount {
            host_path: host_path.clone(),
            image: None,
            sub_path: None,
            container_path: path,
            read_only,
            recursive_read_only: false,
            propagation: Propagation::Private,
            relabel: true,
        });
    }
    mounts.sort_by_key(|mount| mount.container_path.components().count());
    Ok(mounts)
}

fn volume_mount(mount: &VolumeMount, inputs: &MountInputs<'_>) -> Result<Mount, ConfigError> {
    let fail = |text: String| Err(ConfigError::Mount(text));
    let container = &inputs.container.name;
    let Some(volume) = inputs.volumes.get(&mount.name) else {
        return fail(format!(
            "cannot find volume {:?} to mount into container {container:?}",
            mount.name
        ));
    };
    let sub_path = sub_path(mount, inputs.environment)?;
    let propagation = match mount.mount_propagation.as_deref() {
        None | Some("" | "None") => Propagation::Private,
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        Some(other) => return fail(format!("invalid MountPropagation mode: {other:?}")),
    };
    let read_only = mount.read_only.unwrap_or(false) || volume.read_only;
    Ok(Mount {
        host_path: volume.host_path.clone(),
        image: volume.image.clone(),
        sub_path,
        container_path: Path::new("/").join(&mount.mount_path),
        read_only,
        recursive_read_only: recursive_read_only(mount, propagation)?,
        propagation,
        relabel: volume.relabel,
    })
}

/// Whether submounts become read-only too. `IfPossible` is a yes: every supported kernel can.
fn recursive_read_only(mount: &VolumeMount, propagation: Propagation) -> Result<bool, ConfigError> {
    let fail = |text: String| {
        Err(ConfigError::Mount(format!("failed to resolve recursive read-only mode: {text}")))
    };
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    match mode {
        "" | "Disabled" => return Ok(false),
        "IfPossible" | "Enabled" => {}
        other => return fail(format!("unknown recursive read-only mode {other:?}")),
    }
    if mount.read_only != Some(true) {
        return fail(format!(
            "volume {:?} requested recursive read-only mode, but it is not read-only",
            mount.name
        ));
    }
    if propagation != Propagation::Private {
        return fail(format!(
            "volume {:?} requested recursive read-only mode, but it is not compatible with propagation",
            mount.name
        ));
    }
    Ok(true)
}

fn sub_path(
    mount: &VolumeMount,
    environment: &Environment,
) -> Result<Option<PathBuf>, ConfigError> {
    let expression = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty());
    let text = match expression {
        None => mount.sub_path.clone().unwrap_or_default(),
        Some(expression) => {
            let (expanded, unresolved) =
                expansion::expand_reporting(expression, |name| environment.get(name));
            if !unresolved.is_empty() {
                return Err(ConfigError::Mount(format!(
                    "missing value for {:?}",
                    unresolved.join("\", \"")
                )));
            }
            expanded
        }
    };
    if text.is_empty() {
        return Ok(None);
    }
    if text.starts_with('/') {
        return Err(ConfigError::Mount(format!(
            "error SubPath `{text}` must not be an absolute path"
        )));
    }
    let path = Path::new(&text);
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(ConfigError::Mount(format!(
            "unable to provision SubPath `{text}`: must not contain '..'"
        )));
    }
    let plain: PathBuf =
        path.components().filter(|component| matches!(component, Component::Normal(_))).collect();
    Ok(Some(plain).filter(|path| !path.as_os_str().is_empty()))
}
