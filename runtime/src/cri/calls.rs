//! What each call does. Identifiers may be shortened, as `crictl` prints them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tonic::Status;

use super::messages::*;
use super::{About, Backend, view};
use crate::disk;
use crate::interface::{Checkpoint, Credentials, SandboxId, SandboxStatus};

/// The version of the CRI's first generation of messages, which clients expect here.
const KUBELET_API_VERSION: &str = "0.1.0";

/// What a checkpoint may take where its client does not say.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(120);

/// The calls, over whoever does the work.
pub(super) struct Calls {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) about: About,
}

type Answer<T> = Result<T, Status>;

impl Calls {
    pub(super) async fn version(&self, _: VersionRequest) -> Answer<VersionResponse> {
        Ok(VersionResponse {
            version: KUBELET_API_VERSION.to_owned(),
            runtime_name: "berth".to_owned(),
            runtime_version: self.about.version.to_owned(),
            runtime_api_version: "v1".to_owned(),
        })
    }

    pub(super) async fn status(&self, request: StatusRequest) -> Answer<StatusResponse> {
        let condition = |kind: &str, reason: &str, state: Result<(), String>| RuntimeCondition {
            kind: kind.to_owned(),
            status: state.is_ok(),
            reason: if state.is_ok() { String::new() } else { reason.to_owned() },
            message: state.err().unwrap_or_default(),
        };
        let runtime = self.backend.sandboxes().await.map(drop);
        let network = self.backend.network().await;
        // All are the same runtime.
        let features = RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            // Whoever cannot be asked is not ready, and the condition says why.
            user_namespaces: self.backend.user_namespaces().await.unwrap_or(false),
        };
        let handler =
            |name: &str| RuntimeHandler { name: name.to_owned(), features: Some(features) };
        let info = serde_json::json!({
            "cgroupDriver": match self.backend.cgroup_driver().await {
                CgroupDriver::Systemd => "systemd",
                CgroupDriver::Cgroupfs => "cgroupfs",
            },
            "imageDirectory": self.about.images,
            "writableLayerDirectory": self.about.layers,
        });
        Ok(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", "RuntimeNotReady", runtime),
                    condition("NetworkReady", "NetworkPluginNotReady", network),
                ],
            }),
            info: match request.verbose {
                true => BTreeMap::from([("config".to_owned(), info.to_string())]),
                false => BTreeMap::new(),
            },
            // Pods without a runtime class have the one without a name.
            runtime_handlers: std::iter::once("")
                .chain(self.about.handlers.iter().map(String::as_str))
                .map(handler)
                .collect(),
            features: Some(RuntimeFeatures { supplemental_groups_policy: true }),
        })
    }

    pub(super) async fn runtime_config(
        &self,
        _: RuntimeConfigRequest,
    ) -> Answer<RuntimeConfigResponse> {
        let driver = self.backend.cgroup_driver().await;
        let linux = LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
        Ok(RuntimeConfigResponse { linux: Some(linux) })
    }

    pub(super) async fn list_sandboxes(
        &self,
        request: ListPodSandboxRequest,
    ) -> Answer<ListPodSandboxResponse> {
        let filter = request.filter.unwrap_or_default();
        let all = self.sandboxes().await?;
        let wanted = all.iter().filter(|status| view::is_wanted_sandbox(&filter, status));
        Ok(ListPodSandboxResponse { items: wanted.map(view::sandbox).collect() })
    }

    pub(super) async fn sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Answer<PodSandboxStatusResponse> {
        let all = self.sandboxes().await?;
        let id = &request.pod_sandbox_id;
        let found = the_one(id, all.iter().map(|status| (status.id.as_str(), status)))?;
        let status = found.ok_or_else(|| Status::not_found(format!("sandbox {id} not found")))?;
        let containers = status.containers.iter();
        Ok(PodSandboxStatusResponse {
            status: Some(view::sandbox_status(status)),
            info: info(request.verbose, status)?,
            containers_statuses: containers.map(|c| view::container_status(status, c)).collect(),
            timestamp: disk::now_nanoseconds(),
        })
    }

    pub(super) async fn stop_sandbox(
        &self,
        request: StopPodSandboxRequest,
    ) -> Answer<StopPodSandboxResponse> {
        if let Some(id) = self.sandbox_id(&request.pod_sandbox_id).await? {
            self.backend.stop_sandbox(id).await.map_err(Status::unknown)?;
        }
        Ok(StopPodSandboxResponse {})
    }

    pub(super) async fn remove_sandbox(
        &self,
        request: RemovePodSandboxRequest,
    ) -> Answer<RemovePodSandboxResponse> {
        if let Some(id) = self.sandbox_id(&request.pod_sandbox_id).await? {
            self.backend.remove_sandbox(id).await.map_err(Status::unknown)?;
        }
        Ok(RemovePodSandboxResponse {})
    }

    pub(super) async fn list_containers(
        &self,
        request: ListContainersRequest,
    ) -> Answer<ListContainersResponse> {
        let filter = request.filter.unwrap_or_default();
        let all = self.sandboxes().await?;
        let containers = all.iter().flat_map(|status| &status.containers);
        let wanted = containers.filter(|status| view::is_wanted_container(&filter, status));
        Ok(ListContainersResponse { containers: wanted.map(view::container).collect() })
    }

    pub(super) async fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Answer<ContainerStatusResponse> {
        let all = self.sandboxes().await?;
        let id = &request.container_id;
        let each =
            all.iter().flat_map(|sandbox| sandbox.containers.iter().map(move |c| (sandbox, c)));
        let found = the_one(id, each.map(|(sandbox, c)| (c.id.as_str(), (sandbox, c))))?;
        let (sandbox, status) =
            found.ok_or_else(|| Status::not_found(format!("container {id} not found")))?;
        Ok(ContainerStatusResponse {
            status: Some(view::container_status(sandbox, status)),
            info: info(request.verbose, status)?,
        })
    }

    pub(super) async fn checkpoint_container(
        &self,
        request: CheckpointContainerRequest,
    ) -> Answer<CheckpointContainerResponse> {
        let location = PathBuf::from(request.location);
        if !location.is_absolute() {
            return Err(Status::invalid_argument("the location is no absolute path"));
        }
        let timeout = match u64::try_from(request.timeout) {
            Ok(0) => CHECKPOINT_PATIENCE,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(Status::invalid_argument("the timeout is negative")),
        };
        let (id, all) = (&request.container_id, self.sandboxes().await?);
        let each = all.iter().flat_map(|sandbox| &sandbox.containers);
        let found = the_one(id, each.map(|container| (container.id.as_str(), container)))?;
        let found = found.ok_or_else(|| Status::not_found(format!("container {id} not found")))?;
        let to = Checkpoint { location, timeout };
        let made = self.backend.checkpoint(found.id.clone(), to).await;
        made.map_err(Status::unknown)?;
        Ok(CheckpointContainerResponse {})
    }

    pub(super) async fn list_images(
        &self,
        request: ListImagesRequest,
    ) -> Answer<ListImagesResponse> {
        let wanted = request.filter.and_then(|filter| filter.image).unwrap_or_default().image;
        let images = match wanted.is_empty() {
            true => self.backend.images().await.map_err(Status::unknown)?,
            false => {
                self.backend.image(wanted).await.map_err(Status::unknown)?.into_iter().collect()
            }
        };
        Ok(ListImagesResponse { images: images.iter().map(view::image).collect() })
    }

    pub(super) async fn image_status(
        &self,
        request: ImageStatusRequest,
    ) -> Answer<ImageStatusResponse> {
        let reference = reference(request.image)?;
        let image = self.backend.image(reference).await.map_err(Status::unknown)?;
        Ok(ImageStatusResponse {
            info: match &image {
                Some(image) => info(request.verbose, image)?,
                None => BTreeMap::new(),
            },
            image: image.as_ref().map(view::image),
        })
    }

    pub(super) async fn pull_image(&self, request: PullImageRequest) -> Answer<PullImageResponse> {
        let reference = reference(request.image)?;
        let login = request.auth.map(login).transpose()?.flatten();
        let image = self.backend.pull(reference, login).await.map_err(Status::unknown)?;
        Ok(PullImageResponse { image_ref: image.id.to_string() })
    }

    pub(super) async fn remove_image(
        &self,
        request: RemoveImageRequest,
    ) -> Answer<RemoveImageResponse> {
        let reference = reference(request.image)?;
        self.backend.remove_image(reference).await.map_err(Status::unknown)?;
        Ok(RemoveImageResponse {})
    }

    pub(super) async fn image_fs_info(&self, _: ImageFsInfoRequest) -> Answer<ImageFsInfoResponse> {
        Ok(ImageFsInfoResponse {
            image_filesystems: vec![usage(self.about.images.clone()).await?],
            container_filesystems: vec![usage(self.about.layers.clone()).await?],
        })
    }

    async fn sandboxes(&self) -> Answer<Vec<SandboxStatus>> {
        self.backend.sandboxes().await.map_err(Status::unknown)
    }

    /// The sandbox that is meant; `None` where there is none such any more.
    async fn sandbox_id(&self, id: &str) -> Answer<Option<SandboxId>> {
        let all = self.sandboxes().await?;
        the_one(id, all.iter().map(|status| (status.id.as_str(), status.id.clone())))
    }
}

/// What a whole or shortened identifier means, among those that there are.
fn the_one<'a, T>(id: &str, all: impl Iterator<Item = (&'a str, T)>) -> Answer<Option<T>> {
    if id.is_empty() {
        return Err(Status::invalid_argument("no identifier is given"));
    }
    let mut meant = all.filter(|(one, _)| one.starts_with(id)).map(|(_, value)| value);
    match (meant.next(), meant.next()) {
        (Some(_), Some(_)) => {
            Err(Status::invalid_argument(format!("{id} is the start of several identifiers")))
        }
        (found, _) => Ok(found),
    }
}

/// berth's own record, for those who ask for more.
fn info(verbose: bool, record: &impl serde::Serialize) -> Answer<BTreeMap<String, String>> {
    if !verbose {
        return Ok(BTreeMap::new());
    }
    let text =
        serde_json::to_string(record).map_err(|error| Status::internal(error.to_string()))?;
    Ok(BTreeMap::from([("info".to_owned(), text)]))
}

fn reference(image: Option<ImageSpec>) -> Answer<String> {
    let reference = image.unwrap_or_default().image;
    match reference.is_empty() {
        true => Err(Status::invalid_argument("no image is named")),
        false => Ok(reference),
    }
}

/// User and password, in one of the two ways in which the CRI gives them.
fn login(auth: AuthConfig) -> Answer<Option<Credentials>> {
    if !auth.identity_token.is_empty() || !auth.registry_token.is_empty() {
        return Err(Status::invalid_argument(
            "identity and registry tokens are not taken: give a user and a password",
        ));
    }
    if !auth.username.is_empty() {
        let AuthConfig { username, password, .. } = auth;
        return Ok(Some(Credentials::Basic { username, password }));
    }
    if auth.auth.is_empty() {
        return Ok(None);
    }
    let decoded = STANDARD.decode(&auth.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let (username, password) =
        pair.ok_or_else(|| Status::invalid_argument("auth is no user and password in base64"))?;
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Some(Credentials::Basic { username: username.to_owned(), password }))
}

/// What a directory holds on its own file system.
async fn usage(directory: PathBuf) -> Answer<FilesystemUsage> {
    let mountpoint = directory.display().to_string();
    let counted = disk::blocking(move || Ok(count(&directory))).await;
    let (bytes, inodes) = counted.map_err(|error| Status::unknown(error.to_string()))?;
    Ok(FilesystemUsage {
        timestamp: disk::now_nanoseconds(),
        fs_id: Some(FilesystemIdentifier { mountpoint }),
        used_bytes: Some(UInt64Value { value: bytes }),
        inodes_used: Some(UInt64Value { value: inodes }),
    })
}

/// Bytes and entries below a directory; what goes meanwhile is not counted, and no link is followed.
fn count(directory: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            inodes += 1;
            if metadata.is_dir() {
                open.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}
