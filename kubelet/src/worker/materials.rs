//! What a worker needs besides the runtime to start a pod: volumes, configurations, image
//! credentials, directories.
//!
//! A trait, since tests start pods without a disk or an API server ([`crate::fake`]); the real one is
//! [`super::provision`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use async_trait::async_trait;
use berth_runtime::interface::{
    ContainerConfig, ContainerStatus, Image, ImageId, Resources, SandboxConfig,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;

use super::members;
use super::memory::Failure;
use crate::image_policy::Key;
use crate::qos::{self, CgroupPolicy, PodDemand};

/// What a container's configuration is made from.
#[derive(Debug, Clone)]
pub struct ContainerRequest<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// Its restart count.
    pub attempt: u32,
    /// Its image.
    pub image: &'a Image,
    /// The images that volumes of it are, by the volume's name.
    pub volume_images: BTreeMap<String, ImageId>,
    /// The pod's addresses, primary first; the host's with `hostNetwork`.
    pub pod_ips: Vec<IpAddr>,
    /// The environment of its run before.
    pub before: Option<Vec<(String, String)>>,
}

/// What the cgroups of a pod are held to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sizes {
    /// The pod's own.
    pub pod: Resources,
    /// Those of its containers, by name.
    pub containers: BTreeMap<String, Resources>,
}

impl Sizes {
    /// By the pod's requests and limits, and the node's rules.
    pub fn of(pod: &Pod, demand: &PodDemand, policy: &CgroupPolicy) -> Self {
        let containers = members::lasting(pod).filter_map(|(_, container)| {
            let own = demand.container(&container.name)?;
            Some((container.name.clone(), qos::container_resources(demand, own, policy)))
        });
        Self { pod: qos::pod_resources(demand, policy), containers: containers.collect() }
    }
}

/// Makes what pods are started from.
#[async_trait]
pub trait Materials: Send + Sync + 'static {
    /// Materializes all volumes of a pod. Doing it twice does no harm. Every volume that fails is told.
    async fn prepare_volumes(&self, pod: &Pod) -> Result<(), Vec<Failure>>;

    /// Counts up whenever what the pod's volumes are filled from has changed, the pod itself aside: a
    /// ConfigMap or Secret is another, or a token is to be renewed. Then they are prepared anew.
    fn changes(&self, pod: &Pod) -> watch::Receiver<u64>;

    /// Takes all volumes of a pod down.
    async fn tear_down_volumes(&self, pod: &Pod) -> Result<(), Failure>;

    /// What the pod's sandbox is made from.
    async fn sandbox(&self, pod: &Pod, attempt: u32) -> Result<SandboxConfig, Failure>;

    /// What a container is made from, after what it needs on disk was made.
    async fn container(&self, request: ContainerRequest<'_>) -> Result<ContainerConfig, Failure>;

    /// What the cgroups of a pod that runs are to be held to.
    fn sizes(&self, pod: &Pod) -> Result<Sizes, Failure>;

    /// What a pod may pull `image` with, the most specific first.
    async fn keys(&self, pod: &Pod, image: &str) -> Vec<Key>;

    /// What an ended container left as its last words, if anything.
    async fn termination_message(&self, pod: &Pod, record: &ContainerStatus) -> Option<String>;

    /// Links the container's log to where log collectors look for it.
    async fn link_log(&self, pod: &Pod, record: &ContainerStatus);

    /// Removes logs of runs before `attempt`, but for the one just before it.
    async fn drop_old_logs(&self, pod: &Pod, container: &str, attempt: u32);

    /// Removes the directories of all pods but those of these UIDs.
    async fn sweep(&self, keep: &BTreeSet<String>);

    /// Removes the pod's directories, logs and links.
    async fn remove_directories(&self, pod: &Pod) -> Result<(), Failure>;
}
