//! `berth up`: the embedded API server, then a node against it, then the given manifests.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_apiserver::{Credentials, Server};
use berth_kubelet::config::CertificateFiles;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::cli::UpFlags;
use crate::host::{Host, make_private};
use crate::node::{self, Identity};
use crate::settings::{self, Settings};
use crate::{notify, signals};

/// How long the node may take to be Ready before manifests are applied.
const READY: Duration = Duration::from_secs(120);

/// Runs the API server and the node until a signal.
pub(crate) async fn run(flags: UpFlags) -> Result<()> {
    let mut settings = Settings::resolve(&flags.node)?;
    settings::share_disks(&mut settings);
    let manifests = read(&flags.manifests)?;
    let shutdown = signals::shutdown()?;
    let host = Arc::new(Host::open(&settings.places, &settings.resolv_conf).await?);
    for archive in &flags.import {
        let name = || format!("importing {}", archive.display());
        let file = fs::File::open(archive).with_context(name)?;
        for image in host.images.import(file).await.with_context(name)? {
            info!(id = %image.id, tags = ?image.tags, "image imported");
        }
    }
    let node_ips = node::node_ips(&settings)?;
    let server = start(&settings, &flags, node_ips, shutdown.clone()).await?;
    let credentials = &server.credentials;
    let kubeconfig = credentials.admin_kubeconfig.display();
    info!(url = %server.url, %kubeconfig, "API server is up");
    let identity = identity(credentials, flags.node.told());
    let apply = apply(
        credentials.admin_kubeconfig.clone(),
        settings.node_name.clone(),
        manifests,
        shutdown.clone(),
    );
    notify::ready(&shutdown)?;
    let running = node::run(settings, identity, host, shutdown.clone());
    let (node, applied) = tokio::join!(running, apply);
    shutdown.cancel();
    server.wait().await;
    node.and(applied)
}

fn identity(credentials: &Credentials, flags: BTreeMap<String, String>) -> Identity {
    Identity {
        kubeconfig: credentials.agent_kubeconfig.clone(),
        serving: Some(CertificateFiles {
            certificate: credentials.kubelet_serving.cert.clone(),
            key: credentials.kubelet_serving.key.clone(),
        }),
        client_ca: Some(credentials.ca_file.clone()),
        renewal: None,
        requested: None,
        flags,
    }
}

async fn start(
    settings: &Settings,
    flags: &UpFlags,
    node_ips: Vec<IpAddr>,
    shutdown: CancellationToken,
) -> Result<Server> {
    let directory = settings.places.state_dir.join("standalone");
    make_private(&directory)?;
    let mut config = berth_apiserver::Config::new(&directory, &settings.node_name);
    config.bind = flags.api;
    config.signing_duration = Duration::from_secs(flags.cluster_signing_duration);
    config.node_ips = node_ips;
    match settings.service_cidr {
        IpNet::V4(cidr) => config.service_cidr = cidr,
        IpNet::V6(cidr) => {
            bail!("serviceCIDR: {cidr}: the embedded API server gives IPv4 addresses")
        }
    }
    match settings.pod_cidr {
        Some(IpNet::V4(cidr)) => config.pod_cidr = cidr,
        Some(IpNet::V6(cidr)) => {
            bail!("podCIDR: {cidr}: the embedded API server gives IPv4 ranges")
        }
        None => {}
    }
    // Pods cannot reach loopback; the bridge that joins them has the first address of their range.
    config.for_pods = flags
        .api
        .ip()
        .is_loopback()
        .then(|| config.pod_cidr.hosts().next().map(IpAddr::V4))
        .flatten();
    config.shutdown = shutdown;
    berth_apiserver::start(config).await.context("starting the API server")
}

/// A manifest's objects, with the file they are from.
struct Manifest {
    file: PathBuf,
    objects: Vec<DynamicObject>,
}

/// Reads manifests before anything starts, so that a typo costs nothing.
fn read(files: &[PathBuf]) -> Result<Vec<Manifest>> {
    let read = |file: &PathBuf| {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let objects: Vec<Option<DynamicObject>> = serde_saphyr::from_multiple(&text)
            .with_context(|| format!("reading {}", file.display()))?;
        let objects: Vec<_> = objects.into_iter().flatten().collect();
        for object in &objects {
            if object.types.is_none() || object.metadata.name.is_none() {
                bail!("{}: an object has no apiVersion, kind or name", file.display());
            }
        }
        Ok(Manifest { file: file.clone(), objects })
    };
    files.iter().map(read).collect()
}

/// Creates the objects of all manifests once the node is Ready, or merges them into what is there.
async fn apply(
    kubeconfig: PathBuf,
    node: String,
    manifests: Vec<Manifest>,
    shutdown: CancellationToken,
) -> Result<()> {
    if manifests.is_empty() {
        return Ok(());
    }
    let apply = async {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let client = kube::Client::try_from(config)?;
        let nodes: Api<Node> = Api::all(client.clone());
        let ready = kube::runtime::wait::await_condition(nodes, &node, is_ready);
        tokio::time::timeout(READY, ready).await.context("waiting for the node to be Ready")??;
        for manifest in &manifests {
            for object in &manifest.objects {
                apply_one(&client, object)
                    .await
                    .with_context(|| format!("applying {}", manifest.file.display()))?;
            }
        }
        anyhow::Ok(())
    };
    let applied = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        applied = apply => applied,
    };
    // The operator asked for these objects: without them this is not the node that was meant.
    applied.inspect_err(|_| shutdown.cancel())
}

fn is_ready(node: Option<&Node>) -> bool {
    let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn apply_one(client: &kube::Client, object: &DynamicObject) -> Result<()> {
    let types = object.types.clone().context("an object without a kind")?;
    let name = object.metadata.name.as_deref().context("an object without a name")?;
    let kind = GroupVersionKind::try_from(&types)?;
    let (resource, capabilities) = kube::discovery::pinned_kind(client, &kind)
        .await
        .with_context(|| format!("{} {} is not served", types.api_version, types.kind))?;
    let api: Api<DynamicObject> = match (&capabilities.scope, &object.metadata.namespace) {
        (kube::discovery::Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
        (_, Some(namespace)) => Api::namespaced_with(client.clone(), namespace, &resource),
        (_, None) => Api::default_namespaced_with(client.clone(), &resource),
    };
    let outcome = match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => api
            .patch(name, &PatchParams::default(), &Patch::Merge(object))
            .await
            .map(|_| "configured"),
        created => created.map(|_| "created"),
    };
    let outcome = outcome.with_context(|| format!("{} {name}", types.kind))?;
    info!(kind = types.kind, name, outcome, "manifest");
    Ok(())
}
