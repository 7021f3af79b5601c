//! Making a container: image, writable layer, mounts and specification, then the shim.
//!
//! The record is written first and says `Making` until the shim has the container; on any failure
//! everything is undone.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_oci::protocol::{
    self, CreateContainer, Reply, Request, Rootfs, SignalTarget, Stdio, UserIds,
};
use oci_spec::runtime::LinuxSeccomp;

use super::apparmor;
use super::container::{Container, ORDER_PATIENCE, delete};
use super::image_volumes::{self, ImageLayers};
use super::record::{self, ContainerDir, Phase};
use super::sandbox::Sandbox;
use super::selinux::{self, Labels};
use super::shim::{self, Shim};
use super::spec::{self, Input, PreparedMount, SandboxFiles};
use super::{Failures, Shared, chain, failed, host, random_digits, volumes};
use crate::disk;
use crate::images::config::ImageConfig;
use crate::interface::{
    ContainerConfig, ContainerId, ImageError, NamespaceMode, RuntimeError, Seccomp,
};

const CREATE_PATIENCE: Duration = Duration::from_secs(60);
const MAX_PROFILE_BYTES: u64 = 1 << 20;
const HOST_SHM: &str = "/dev/shm";

/// Makes a container in a ready sandbox.
pub(super) async fn create(
    shared: Arc<Shared>,
    sandbox: Arc<Sandbox>,
    config: ContainerConfig,
) -> Result<ContainerId, RuntimeError> {
    let _shared_gate = sandbox.gate.read().await;
    let not_ready = || RuntimeError::Invalid(format!("sandbox {} is not ready", sandbox.id));
    let shim = match sandbox.phase() {
        Phase::Ready => sandbox.shim().ok_or_else(not_ready)?,
        _ => return Err(not_ready()),
    };
    let log_path = log_path(&sandbox.config.log_directory, &config.log_path)?;
    let prepared = shared.images.prepare(&config.image).await.map_err(image_failure)?;
    let volumes = image_volumes::fetch(&shared.images, &config.mounts).await;
    let volumes = volumes.map_err(image_failure)?;
    let mut layers = prepared.layers;
    layers.extend_from_slice(&volumes.chain);
    let hold = shared.images.hold(&layers);
    let id = ContainerId::try_from(random_digits(64)).map_err(|e| failed("choose an id", e))?;
    let record = record::Container {
        id: id.clone(),
        config,
        phase: Phase::Making,
        created_at: disk::now_nanoseconds(),
        layers,
        stop_signal: 0,
        user: None,
        ended: None,
    };
    let container = Container::of(record, sandbox.dir.container(&id), hold);
    // Known before the shim has it, so that no exit is missed.
    sandbox.add(container.clone());
    let making = Making { shared: &shared, sandbox: &sandbox, shim: &shim, container: &container };
    match making.run((prepared.config, volumes), prepared.lower, log_path).await {
        Ok(()) => Ok(id),
        Err(error) => {
            undo(&shared, &container, &shim).await;
            sandbox.forget(&id);
            Err(error)
        }
    }
}

/// A container on its way to the shim.
struct Making<'a> {
    shared: &'a Shared,
    sandbox: &'a Sandbox,
    shim: &'a Shim,
    container: &'a Container,
}

impl Making<'_> {
    async fn run(
        &self,
        (image, volumes): (ImageConfig, ImageLayers),
        lower: Vec<PathBuf>,
        log_path: PathBuf,
    ) -> Result<(), RuntimeError> {
        let record = self.container.record_copy();
        let config = record.config.clone();
        let upper = self.shared.layout.writable_layer(&self.container.id);
        let level = self.sandbox.selinux_level.as_deref();
        let labels = self.shared.selinux.as_ref();
        let labels = labels.map(|contexts| contexts.labels(&config.security, level)).transpose();
        let labels = labels.map_err(RuntimeError::Create)?;
        let ground = Ground {
            dir: self.container.dir.clone(),
            upper: upper.clone(),
            log_path: log_path.clone(),
            record,
            user_ids: self.sandbox.user_ids,
            image_layers: volumes,
            labels,
            files: sandbox_files(self.sandbox),
            user_namespace: self.sandbox.dir.user_namespace(),
        };
        let host = prepare_host(&config, ground).await?;
        let mut facts = self.shared.facts.clone();
        facts.devices = host.devices;
        let planned = spec::plan(Input {
            config: &config,
            sandbox: &self.sandbox.config,
            image,
            mounts: &host.mounts,
            files: &sandbox_files(self.sandbox),
            host: &facts,
            local_seccomp: host.seccomp,
            app_armor: host.app_armor,
            labels: host.labels,
            user_namespace: self
                .sandbox
                .user_ids
                .map(|ids| spec::UserNamespace { path: self.sandbox.dir.user_namespace(), ids }),
        })?;
        let (path, spec) = (self.container.dir.spec(), planned.spec.clone());
        let kept = disk::blocking(move || disk::write_run_json(&path, &spec)).await;
        kept.map_err(|e| failed("keep the container's specification", e))?;
        let id = self.container.id.to_string();
        let request = CreateContainer {
            spec: planned.spec,
            rootfs: Rootfs::Overlay { lower, upper: upper.join("upper"), work: upper.join("work") },
            user: planned.user,
            cgroup_path: self.sandbox.group_of(&self.container.id),
            stdio: stdio(&config, log_path),
            pid_target: config.pid_target.as_ref().map(ToString::to_string),
            id,
        };
        let made = ask_create(self.shim, request).await?;
        self.container.accept(made.user, planned.stop_signal).await
    }
}

async fn undo(shared: &Shared, container: &Container, shim: &Shim) {
    let mut failures = Failures::default();
    let id = container.id.to_string();
    let kill = Request::Signal { id: id.clone(), signal: 9, target: SignalTarget::All };
    // It may never have come to be.
    let _ = shim.order(&kill, ORDER_PATIENCE).await;
    failures.note("delete", delete(shim, &id).await);
    failures.note("remove the files", container.remove_files(shared).await);
    let outcome = failures.into_result(format!("undo container {id}"));
    if let Err(error) = outcome {
        tracing::error!(container = %container.id, error = chain(&error), "a failed container is not wholly undone");
    }
}

async fn ask_create(
    shim: &Shim,
    request: CreateContainer,
) -> Result<protocol::ContainerRecord, RuntimeError> {
    let request = Request::Create(Box::new(request));
    match shim.ask(&request, Some(CREATE_PATIENCE)).await {
        Ok(Reply::Created(record)) => {
            for warning in &record.warnings {
                tracing::debug!(container = record.id, warning, "not enforced");
            }
            Ok(record)
        }
        Ok(_) => Err(failed("create a container", shim::Error::Protocol)),
        Err(shim::Error::Refused(failure)) => Err(RuntimeError::Create(failure.message)),
        Err(error) => Err(failed("create a container", error)),
    }
}

fn image_failure(error: ImageError) -> RuntimeError {
    match error {
        ImageError::Pull { .. } => RuntimeError::Create(error.to_string()),
        error => failed("prepare the image", error),
    }
}

fn stdio(config: &ContainerConfig, log_path: PathBuf) -> Stdio {
    Stdio {
        log_path,
        log_max_bytes: config.log_limits.max_bytes,
        log_max_files: config.log_limits.max_files,
        tty: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
    }
}

/// The log file, which must stay below the pod's log directory.
fn log_path(directory: &Path, path: &Path) -> Result<PathBuf, RuntimeError> {
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    match plain && path.file_name().is_some() {
        true => Ok(directory.join(path)),
        false => Err(RuntimeError::Invalid(format!("invalid log path {path:?}"))),
    }
}

fn sandbox_files(sandbox: &Sandbox) -> SandboxFiles {
    SandboxFiles {
        shm: match sandbox.config.ipc {
            NamespaceMode::Pod => sandbox.dir.shm(),
            NamespaceMode::Host => PathBuf::from(HOST_SHM),
        },
        hostname: sandbox.dir.hostname(),
        resolv_conf: sandbox.dir.resolv_conf(),
    }
}

/// Where a container's files go.
struct Ground {
    dir: ContainerDir,
    upper: PathBuf,
    log_path: PathBuf,
    record: record::Container,
    user_ids: Option<UserIds>,
    image_layers: ImageLayers,
    labels: Option<Labels>,
    files: SandboxFiles,
    /// Where the pod's user namespace is, if it has `user_ids`.
    user_namespace: PathBuf,
}

/// What was found on the host for a container.
struct OnHost {
    mounts: Vec<PreparedMount>,
    seccomp: Option<LinuxSeccomp>,
    app_armor: Option<String>,
    labels: Option<Labels>,
    devices: Vec<oci_spec::runtime::LinuxDevice>,
}

async fn prepare_host(config: &ContainerConfig, ground: Ground) -> Result<OnHost, RuntimeError> {
    let (mounts, security) = (config.mounts.clone(), config.security.clone());
    let prepared = tokio::task::spawn_blocking(move || {
        make_ground(&ground).map_err(|e| failed("make the container's directories", e))?;
        let seccomp = match &security.seccomp {
            Seccomp::Localhost(path) if !security.privileged => Some(local_profile(path)?),
            _ => None,
        };
        let app_armor =
            apparmor::Host::default().profile(&security).map_err(RuntimeError::Create)?;
        let devices = match security.privileged {
            true => host::devices().map_err(|e| failed("list the host's devices", e))?,
            false => Vec::new(),
        };
        let users = match ground.user_ids {
            None => None,
            Some(_) => Some(
                std::fs::File::open(&ground.user_namespace)
                    .map_err(|e| failed("open the pod's user namespace", e))?,
            ),
        };
        let label = ground.labels.as_ref().map(|labels| labels.files.as_str());
        let images = volumes::Images { layers: &ground.image_layers, users: users.as_ref(), label };
        label.map_or(Ok(()), |label| label_files(&ground.files, label))?;
        let mounts =
            volumes::prepare(&mounts, &ground.dir, &images).map_err(RuntimeError::Create)?;
        Ok(OnHost { mounts, seccomp, app_armor, labels: ground.labels, devices })
    });
    match prepared.await {
        Ok(outcome) => outcome,
        Err(error) => Err(failed("prepare a container", error)),
    }
}

/// Labels what the containers of a sandbox share; the host's own memory stays as it is.
fn label_files(files: &SandboxFiles, label: &str) -> Result<(), RuntimeError> {
    let own = [&files.shm, &files.hostname, &files.resolv_conf];
    let mut own = own.into_iter().filter(|path| *path != Path::new(HOST_SHM));
    own.try_for_each(|path| selinux::relabel(path, label))
        .map_err(|e| failed("label the sandbox's files", e))
}

fn make_ground(ground: &Ground) -> io::Result<()> {
    disk::make_private_dir(ground.dir.path())?;
    disk::write_run_json(&ground.dir.record(), &ground.record)?;
    disk::make_private_dir(&ground.upper.join("work"))?;
    let upper = ground.upper.join("upper");
    disk::make_private_dir(&upper)?;
    // The upper directory is the container's `/`.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(0o755))?;
    if let Some(ids) = ground.user_ids {
        std::os::unix::fs::chown(&upper, Some(ids.first), Some(ids.first))?;
    }
    match ground.log_path.parent() {
        Some(parent) => std::fs::create_dir_all(parent).map_err(|e| disk::at(parent, e)),
        None => Ok(()),
    }
}

/// Reads a profile of the host; anything but a whole one is refused (CVE-2023-2431).
fn local_profile(path: &Path) -> Result<LinuxSeccomp, RuntimeError> {
    let refused = |why: String| {
        RuntimeError::Create(format!("cannot load seccomp profile {:?}: {why}", path.display()))
    };
    let bytes = disk::read_limited(path, MAX_PROFILE_BYTES).map_err(|e| refused(e.to_string()))?;
    spec::parse_seccomp(&bytes).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_path_cannot_leave_the_pods_directory() {
        let directory = Path::new("/var/log/pods/x");
        for bad in ["", "/etc/x", "../x", "a/../../x"] {
            assert!(log_path(directory, Path::new(bad)).is_err(), "{bad}");
        }
        let good = log_path(directory, Path::new("c/0.log")).unwrap();
        assert_eq!(good, directory.join("c/0.log"));
    }

    #[test]
    fn an_empty_or_missing_profile_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        assert!(matches!(local_profile(&path), Err(RuntimeError::Create(_))));
        std::fs::write(&path, b"").unwrap();
        assert!(local_profile(&path).is_err());
    }
}
