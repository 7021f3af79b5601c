//! Makes what pods are started from on a real node: fetches what they refer to, materializes volumes
//! and files, describes sandboxes and containers to the runtime.
//!
//! The decisions are in [`crate::volumes`], [`crate::environment`], [`crate::container_config`] and
//! [`crate::pod_files`]; here they are only brought together. What touches the disk runs on blocking
//! threads.

mod following;
mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use berth_runtime::interface::{
    ContainerConfig, ContainerState, ContainerStatus, Image, ImageId, Mount, SandboxConfig,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;

use super::materials::{ContainerRequest, Materials, Sizes};
use super::memory::Failure;
use crate::cache::Cache;
use crate::container_config::{
    self, ContainerInputs, MountInputs, MountedVolume, NodeFacts, PodFilePaths,
};
use crate::downward::Facts;
use crate::environment::{self, Environment, Service};
use crate::events::{Recorder, Severity};
use crate::gate;
use crate::image_policy::{Key, Keyring};
use crate::meters::{self, Meters};
use crate::node::Shared;
use crate::objects::{EnvFile, Fetched};
use crate::pod_files::{self, DnsSettings, LastWords, ResolvConf, TerminationPolicy};
use crate::qos::{PodDemand, ResourceAmounts};
use crate::runtime_class::Classes;
use crate::static_pods;
use crate::unsupported;
use crate::volumes::{self, PodDirectory, Sources, Tokens};
use objects::Objects;

/// How long a container waits for the first list of Services before that is told.
const SERVICES: Duration = Duration::from_secs(5);

/// How long the name of a link to a log may be, before its suffix.
const MAX_LINK: usize = 255 - ".log".len();

/// What provision is made with.
pub struct Place {
    /// `/var/lib/berth`.
    pub root: PathBuf,
    /// `/var/log/containers`.
    pub links: PathBuf,
    /// The node's resolver file.
    pub resolv_conf: PathBuf,
    /// The cluster's DNS servers.
    pub cluster_dns: Vec<IpAddr>,
    /// The node's addresses, primary first.
    pub node_ips: Vec<IpAddr>,
    /// What of the node shapes containers.
    pub facts: NodeFacts,
    /// The node as it was last seen.
    pub node: Shared,
    /// Counts what is made.
    pub meters: Meters,
    /// The handlers that runtime classes may name.
    pub runtime_handlers: Vec<String>,
}

/// Provision on a real node.
pub struct Provision {
    place: Arc<Place>,
    objects: Objects,
    classes: Classes,
    services: watch::Receiver<Option<Vec<Service>>>,
    cache: Cache,
    events: Recorder,
}

/// Everything a pod's files are made from, owned, so that it can go to a blocking thread.
struct Ingredients {
    pod: Pod,
    demand: PodDemand,
    fetched: Fetched,
    tokens: Tokens,
    allocatable: ResourceAmounts,
    pod_ips: Vec<IpAddr>,
    place: Arc<Place>,
}

impl Ingredients {
    fn facts(&self) -> Facts<'_> {
        Facts {
            pod: &self.pod,
            demand: &self.demand,
            host_ips: &self.place.node_ips,
            pod_ips: &self.pod_ips,
            allocatable: &self.allocatable,
        }
    }

    fn directory(&self) -> Result<PodDirectory, Failure> {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        PodDirectory::new(&self.place.root, uid).map_err(config_error)
    }

    /// Makes all volumes; those that fail are told, after all were tried.
    fn set_up(&self) -> Result<BTreeMap<String, MountedVolume>, Vec<Failure>> {
        let directory = self.directory().map_err(|failure| vec![failure])?;
        directory.create().map_err(|error| {
            let message = format!("error making pod data directories: {error}");
            vec![Failure::new("FailedMount", message)]
        })?;
        let facts = self.facts();
        let node = self.place.node.read().unwrap_or_else(PoisonError::into_inner).clone();
        let sources =
            Sources { facts, fetched: &self.fetched, tokens: &self.tokens, node: Some(&node) };
        let (mut mounted, mut failures) = (BTreeMap::new(), Vec::new());
        for (name, desired) in volumes::desired_volumes(&self.pod, &sources) {
            let begun = Instant::now();
            let result = desired.and_then(|d| volumes::set_up(&directory, &name, &d));
            let outcome = (result.is_ok(), begun.elapsed());
            meters::note_volume(&self.place.meters, (&self.pod, &name), outcome);
            match result {
                Ok(volume) => {
                    mounted.insert(name, volume);
                }
                Err(error) => {
                    let message = volumes::failed_mount_message(&name, &error);
                    failures.push(Failure::new("FailedMount", message));
                }
            }
        }
        match failures.is_empty() {
            true => Ok(mounted),
            false => Err(failures),
        }
    }

    /// Writes the files that are the kubelet's for one container.
    fn files(&self, container: &str, attempt: u32) -> Result<PodFilePaths, Failure> {
        let directory = self.directory()?;
        let spec = self.pod.spec.as_ref();
        let aliases = spec.and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
        let is_host_network = spec.and_then(|s| s.host_network) == Some(true);
        let domain = &self.place.facts.cluster_domain;
        let hostname = container_config::pod_hostname(&self.pod, domain).map_err(config_error)?;
        let (hosts, kernel_name) = match is_host_network {
            true => {
                let node_hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
                let hosts = pod_files::host_network_hosts(&node_hosts, aliases);
                (hosts, self.place.facts.hostname.clone())
            }
            false => {
                let hosts = pod_files::pod_hosts(&self.pod_ips, &hostname, aliases);
                (hosts, hostname.kernel_name.clone())
            }
        };
        let (resolv_conf, _) = pod_files::resolv_conf(&self.pod, &dns(&self.place));
        let contents = [
            (directory.hosts_path(), hosts),
            (directory.resolv_conf_path(), resolv_conf.render()),
            (directory.hostname_path(), format!("{kernel_name}\n")),
        ];
        let made = directory.create_files();
        made.map_err(|error| file_error(&directory.files_path(), &error))?;
        for (path, content) in &contents {
            pod_files::write_in_place(path, content.as_bytes(), 0o644)
                .map_err(|error| file_error(path, &error))?;
        }
        let log = directory.create_termination_log(container, attempt);
        let log = log.map_err(|e| file_error(&directory.path(), &e))?;
        let [(hosts, _), (resolv_conf, _), (hostname, _)] = contents;
        Ok(PodFilePaths {
            hosts: Some(hosts),
            resolv_conf: Some(resolv_conf),
            hostname: Some(hostname),
            termination_log: Some(log),
        })
    }

    fn mounts(
        &self,
        container: &Container,
        images: BTreeMap<String, ImageId>,
        (environment, attempt): (&Environment, u32),
    ) -> Result<Vec<Mount>, Failure> {
        let mut volumes = self.set_up().map_err(|failures| {
            let messages: Vec<_> = failures.into_iter().map(|failure| failure.message).collect();
            Failure::new("CreateContainerConfigError", messages.join("; "))
        })?;
        for (name, image) in images {
            if let Some(volume) = volumes.get_mut(&name) {
                volume.image = Some(image);
            }
        }
        let files = self.files(&container.name, attempt)?;
        let inputs = MountInputs { container, volumes: &volumes, environment, files: &files };
        let mounts = container_config::container_mounts(inputs).map_err(config_error)?;
        volumes::ensure_sub_paths(&mounts).map_err(|error| {
            tracing::warn!(error = %super::apply::chain(&error), "sub-path refused");
            let message = format!("failed to prepare subPath for volumeMount: {error}");
            Failure::new("CreateContainerConfigError", message)
        })?;
        Ok(mounts)
    }

    fn container(
        &self,
        container: &Container,
        (image, volume_images): (&Image, BTreeMap<String, ImageId>),
        (environment, attempt): (&Environment, u32),
    ) -> Result<ContainerConfig, Failure> {
        if let Some(why) = unsupported::refusal(&unsupported::audit_container(container)) {
            return Err(Failure::new("CreateContainerConfigError", why));
        }
        let mounts = self.mounts(container, volume_images, (environment, attempt))?;
        let config = container_config::container_config(ContainerInputs {
            pod: &self.pod,
            container,
            demand: &self.demand,
            environment,
            image,
            mounts,
            attempt,
            node: &self.place.facts,
        });
        let config = config.map_err(config_error)?;
        container_config::check_seccomp_profile(&config)
            .map_err(|error| Failure::new("CreateContainerError", error.to_string()))?;
        Ok(config)
    }
}

fn dns(place: &Place) -> DnsSettings {
    let node = std::fs::read_to_string(&place.resolv_conf).ok();
    DnsSettings {
        cluster_dns: place.cluster_dns.clone(),
        cluster_domain: place.facts.cluster_domain.clone(),
        node: node.map(|text| ResolvConf::parse(&text)),
    }
}

fn config_error(error: container_config::ConfigError) -> Failure {
    Failure::new("CreateContainerConfigError", error.to_string())
}

fn file_error(path: &Path, error: &std::io::Error) -> Failure {
    let message = format!("write {}: {error}", path.display());
    Failure::new("CreateContainerConfigError", message)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new("Internal", error.to_string())),
    }
}

impl Provision {
    /// Provision in `place`, with objects from `client`.
    pub fn new(
        place: Place,
        client: kube::Client,
        services: watch::Receiver<Option<Vec<Service>>>,
        (cache, events): (Cache, Recorder),
    ) -> Self {
        let classes = Classes::new(client.clone(), place.runtime_handlers.iter().cloned());
        let objects = Objects::new(client);
        Self { place: Arc::new(place), objects, classes, services, cache, events }
    }

    async fn ingredients(&self, pod: &Pod, pod_ips: Vec<IpAddr>) -> Result<Ingredients, Failure> {
        let demand = PodDemand::parse(pod)
            .map_err(|error| Failure::new("CreateContainerConfigError", error.to_string()))?;
        let (fetched, tokens) = tokio::join!(self.objects.fetch(pod), self.objects.tokens(pod));
        Ok(Ingredients {
            pod: pod.clone(),
            demand,
            fetched,
            tokens,
            allocatable: gate::allocatable(&self.place.node),
            pod_ips,
            place: Arc::clone(&self.place),
        })
    }

    /// The Services, once they are known.
    async fn services(&self, pod: &Pod) -> Option<Vec<Service>> {
        let mut services = self.services.clone();
        if static_pods::is_static(pod) {
            // It does not wait for an API server.
            return Some(services.borrow().clone().unwrap_or_default());
        }
        let known = tokio::time::timeout(SERVICES, services.wait_for(Option::is_some)).await;
        known.ok()?.ok()?.clone()
    }

    /// The files that the container's variables come from.
    async fn env_files(
        &self,
        request: &ContainerRequest<'_>,
    ) -> Result<Vec<((String, String), EnvFile)>, Failure> {
        let mut variables = request.container.env.iter().flatten();
        if !variables.any(|v| v.value_from.as_ref().is_some_and(|s| s.file_key_ref.is_some())) {
            return Ok(Vec::new());
        }
        let directory = self.pod_directory(request.pod)?;
        let (pod, container) = (request.pod.clone(), request.container.clone());
        blocking(move || Ok(volumes::read_env_files(&pod, &container, &directory))).await
    }

    fn pod_directory(&self, pod: &Pod) -> Result<PodDirectory, Failure> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        PodDirectory::new(&self.place.root, uid).map_err(config_error)
    }

    fn log_directory(&self, pod: &Pod) -> Option<PathBuf> {
        let identity = container_config::pod_identity(pod).ok()?;
        let name = format!("{}_{}_{}", identity.namespace, identity.name, identity.uid);
        Some(self.place.facts.log_root.join(name))
    }

    fn link(&self, pod: &Pod, record: &ContainerStatus) -> Option<PathBuf> {
        let identity = container_config::pod_identity(pod).ok()?;
        let id = record.id.to_string();
        let names = [&identity.name, &identity.namespace, &record.config.name, &id];
        Some(self.place.links.join(link_name(names.map(String::as_str))))
    }
}

#[async_trait]
impl Materials for Provision {
    async fn prepare_volumes(&self, pod: &Pod) -> Result<(), Vec<Failure>> {
        let one = |failure| vec![failure];
        let ingredients = self.ingredients(pod, Vec::new()).await.map_err(one)?;
        blocking(move || Ok(ingredients.set_up().map(drop))).await.map_err(one)?
    }

    fn changes(&self, pod: &Pod) -> watch::Receiver<u64> {
        self.objects.changes(pod)
    }

    async fn tear_down_volumes(&self, pod: &Pod) -> Result<(), Failure> {
        let directory = self.pod_directory(pod)?;
        blocking(move || {
            volumes::tear_down(&directory).map_err(|errors| {
                let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
                Failure::new("FailedUnmount", texts.join("; "))
            })
        })
        .await
    }

    async fn sandbox(&self, pod: &Pod, attempt: u32) -> Result<SandboxConfig, Failure> {
        let demand = PodDemand::parse(pod)
            .map_err(|error| Failure::new("FailedCreatePodSandBox", error.to_string()))?;
        let place = Arc::clone(&self.place);
        let (_, notices) = pod_files::resolv_conf(pod, &dns(&place));
        for notice in notices {
            self.events.pod(pod, Severity::Warning, notice.reason, notice.message);
        }
        let config = container_config::sandbox_config(pod, &demand, attempt, &place.facts)
            .map_err(|error| Failure::new("FailedCreatePodSandBox", error.to_string()))?;
        let handler = self.classes.handler(pod).await;
        let runtime_handler =
            handler.map_err(|error| Failure::new("FailedCreatePodSandBox", error.to_string()))?;
        Ok(SandboxConfig { runtime_handler, ..config })
    }

    async fn container(&self, request: ContainerRequest<'_>) -> Result<ContainerConfig, Failure> {
        let mut ingredients = self.ingredients(request.pod, request.pod_ips.clone()).await?;
        ingredients.fetched.insert_files(self.env_files(&request).await?);
        let services = self.services(request.pod).await;
        let environment = environment::resolve_or_keep(
            request.container,
            &ingredients.facts(),
            &ingredients.fetched,
            services.as_deref(),
            request.before,
        );
        let environment = environment
            .map_err(|error| Failure::new("CreateContainerConfigError", error.to_string()))?;
        let (container, image) = (request.container.clone(), request.image.clone());
        let (images, attempt) = (request.volume_images, request.attempt);
        blocking(move || {
            ingredients.container(&container, (&image, images), (&environment, attempt))
        })
        .await
    }

    fn sizes(&self, pod: &Pod) -> Result<Sizes, Failure> {
        let demand = PodDemand::parse(pod)
            .map_err(|error| Failure::new("InvalidResources", error.to_string()))?;
        Ok(Sizes::of(pod, &demand, &self.place.facts.cgroups))
    }

    async fn keys(&self, pod: &Pod, image: &str) -> Vec<Key> {
        let (secrets, mut without) = self.objects.pull_secrets(pod).await;
        let (keyring, unreadable) = Keyring::from_secrets(secrets.iter().map(|s| &**s));
        without.extend(unreadable);
        if !without.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may \
                 not succeed.",
                without.join(", ")
            );
            self.events.pod(pod, Severity::Warning, "FailedToRetrieveImagePullSecret", message);
        }
        keyring.lookup(image)
    }

    async fn termination_message(&self, pod: &Pod, record: &ContainerStatus) -> Option<String> {
        let ContainerState::Exited { exit_code, .. } = record.state else {
            return None;
        };
        let directory = self.pod_directory(pod).ok()?;
        let name = record.config.name.clone();
        let (_, spec) = super::members::find(pod, &name)?;
        let policy = TerminationPolicy::parse(spec.termination_message_policy.as_deref());
        let containers = pod.spec.as_ref().map_or(1, |spec| {
            spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len)
        });
        let log = self.log_directory(pod)?.join(&record.config.log_path);
        let attempt = record.config.attempt;
        let read = tokio::task::spawn_blocking(move || {
            let file = directory.termination_log_path(&name, attempt);
            pod_files::termination_message(&LastWords {
                file: &file,
                log: &log,
                policy,
                exit_code,
                limit_bytes: pod_files::message_limit_bytes(containers),
            })
        });
        read.await.ok()
    }

    async fn link_log(&self, pod: &Pod, record: &ContainerStatus) {
        let (Some(link), Some(directory)) = (self.link(pod, record), self.log_directory(pod))
        else {
            return;
        };
        let target = directory.join(&record.config.log_path);
        let links = self.place.links.clone();
        let linked = async {
            tokio::fs::create_dir_all(&links).await?;
            match tokio::fs::symlink(&target, &link).await {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        };
        if let Err(error) = linked.await {
            tracing::warn!(path = %link.display(), %error, "log not linked");
        }
    }

    async fn drop_old_logs(&self, pod: &Pod, container: &str, attempt: u32) {
        let Some(directory) = self.log_directory(pod) else { return };
        let directory = directory.join(container);
        let (links, root) = (self.place.links.clone(), self.place.facts.log_root.clone());
        let _ = tokio::task::spawn_blocking(move || {
            drop_logs(&directory, attempt);
            drop_dangling(&links, &root);
        })
        .await;
    }

    async fn sweep(&self, keep: &BTreeSet<String>) {
        let (root, keep) = (self.place.root.clone(), keep.clone());
        let uids = {
            let root = root.clone();
            tokio::task::spawn_blocking(move || PodDirectory::list(&root)).await
        };
        let Ok(Ok(uids)) = uids else { return };
        for uid in uids.into_iter().filter(|uid| !keep.contains(uid)) {
            tracing::info!(uid, "removing the directory of a pod that is known to nobody");
            let Ok(directory) = PodDirectory::new(&root, &uid) else { continue };
            let removed = tokio::task::spawn_blocking(move || volumes::tear_down(&directory));
            if let Ok(Err(errors)) = removed.await {
                for error in errors {
                    tracing::warn!(uid, %error, "directory of a gone pod stays");
                }
            }
        }
    }

    async fn remove_directories(&self, pod: &Pod) -> Result<(), Failure> {
        self.tear_down_volumes(pod).await?;
        self.objects.forget(pod);
        let failed = |error: std::io::Error| Failure::new("FailedRemove", error.to_string());
        if let Some(logs) = self.log_directory(pod) {
            let (links, root) = (self.place.links.clone(), self.place.facts.log_root.clone());
            blocking(move || {
                // Written by the shim alone, no container sees it: nothing in it leads elsewhere.
                match std::fs::remove_dir_all(&logs) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(failed(error));
                    }
                    _ => {}
                }
                drop_dangling(&links, &root);
                Ok(())
            })
            .await?;
        }
        // Last: while the record is there, a later start or a reset knows of the rest.
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.cache.remove(uid).await.map_err(failed)
    }
}

/// What the link to a log is called: longer than a file's name may be it loses its end, as upstream's.
fn link_name([pod, namespace, container, id]: [&str; 4]) -> String {
    let mut name = format!("{pod}_{namespace}_{container}-{id}");
    name.truncate(name.floor_char_boundary(MAX_LINK));
    name + ".log"
}

/// Removes the logs of runs before `attempt` but for the one just before it.
fn drop_logs(directory: &Path, attempt: u32) {
    let oldest = attempt.saturating_sub(1);
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.split('.').next()?.parse::<u32>().ok());
        if number.is_some_and(|n| n < oldest) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Removes links to logs of ours that are gone.
fn drop_dangling(links: &Path, logs: &Path) {
    let entries = std::fs::read_dir(links).into_iter().flatten().flatten();
    for entry in entries {
        let is_ours = std::fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(logs));
        if is_ours && !entry.path().exists() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_a_link_whatever_its_names() {
        assert_eq!(link_name(["p", "ns", "c", "1"]), "p_ns_c-1.log");
        let long = "x".repeat(253);
        let long = link_name([&long, "ns", "c", "1"]);
        assert_eq!((long.len(), long.ends_with("x.log")), (255, true));
    }

    #[test]
    fn logs_of_the_newest_two_runs_stay() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["0.log", "1.log", "1.log.20230101-000000.gz", "2.log", "other"] {
            std::fs::write(directory.path().join(name), b"x").unwrap();
        }
        drop_logs(directory.path(), 2);
        let names = std::fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> =
            names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["1.log", "1.log.20230101-000000.gz", "2.log", "other"]);
    }
}
