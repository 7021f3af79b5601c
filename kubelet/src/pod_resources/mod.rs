//! The podresources socket, `<root>/pod-resources/kubelet.sock` (KEP-606): which of the node's devices,
//! processors and NUMA memory the containers of its pods have been assigned.
//!
//! Nothing of that is assigned here: there are no device plugins, and processors and memory have the
//! policy `none`. So pods and containers are told with nothing, and nothing can be assigned, as by a
//! kubelet that is configured so. Metrics agents of GPUs and topology-aware schedulers' agents ask.
//!
//! Who may connect, the file's mode decides: root, as upstream. A client can be a container with the
//! socket in it, and has bounds: connections, calls, lengths, and a rate that all share.

mod limiter;
pub mod messages;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_runtime::grpc::{self, Body, Bounds, Route, Service, Status, http};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::meters::{self, Meter, Meters};
use crate::shelf::Shelf;
use limiter::Limiter;
use messages::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest,
    ListPodResourcesResponse, PodResources,
};

/// How many calls of all clients are answered in a second, and at once: upstream's.
const A_SECOND: u32 = 100;
const AT_ONCE: u32 = 10;

/// What one connection can have under way, and how many there are: an answer that its client does not
/// read is kept until the connection ends.
const MAX_CALLS: usize = 4;
const MAX_CONNECTIONS: usize = 32;

/// A request names a pod. Answers are at most as long as clients of gRPC take where they say nothing
/// else.
const CALL: Bounds =
    Bounds { request_bytes: 4096, answer_bytes: 4 << 20, deadline: Duration::from_secs(10) };

/// The socket, bound; its file is removed when it is dropped.
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Binds the socket below `root`, in place of one that an earlier agent has left. Blocking, short.
    ///
    /// # Errors
    /// When its directory or its file cannot be made.
    pub fn bind(root: &Path) -> io::Result<Self> {
        let directory = root.join("pod-resources");
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&directory)?;
        let path = directory.join("kubelet.sock");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        let socket = Self { path, listener: Some(listener) };
        fs::set_permissions(&socket.path, fs::Permissions::from_mode(0o600))?;
        Ok(socket)
    }

    /// Serves the socket until `shutdown`.
    pub async fn serve(mut self, lister: Lister, shutdown: CancellationToken) {
        let Some(listener) = self.listener.take() else { return };
        let connections = grpc::accept(listener, MAX_CONNECTIONS);
        let service = (Service::new(lister), MAX_CALLS);
        if let Err(error) = grpc::serve(connections, service, shutdown).await {
            tracing::error!(error = %crate::worker::chain(&error), "podresources are not served any more");
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "socket not removed");
        }
    }
}

/// Answers the calls.
pub struct Lister {
    shelf: Shelf,
    meters: Meters,
    limiter: Limiter,
}

impl Lister {
    /// Tells of the pods on a shelf.
    pub fn new(shelf: Shelf, meters: Meters) -> Self {
        Self { shelf, meters, limiter: Limiter::new(A_SECOND, AT_ONCE) }
    }

    fn count(&self, meter: &'static Meter) {
        self.meters.count(meter, &["v1"]);
    }

    /// The pods that have not ended.
    fn list(&self) -> ListPodResourcesResponse {
        self.count(&meters::LISTS);
        let pods = self.shelf.shown().into_iter().filter(|shown| !shown.is_over());
        ListPodResourcesResponse { pod_resources: pods.map(|shown| of_pod(&shown.pod)).collect() }
    }

    /// What the first version told: every pod that is known, and main containers alone.
    fn list_first(&self) -> ListPodResourcesResponse {
        let pods = self.shelf.shown().into_iter().map(|shown| {
            let containers = main(&shown.pod).map(of_container).collect();
            PodResources { containers, ..named(&shown.pod) }
        });
        ListPodResourcesResponse { pod_resources: pods.collect() }
    }

    fn get(&self, request: &GetPodResourcesRequest) -> Result<GetPodResourcesResponse, Status> {
        self.count(&meters::GETS);
        let GetPodResourcesRequest { pod_name, pod_namespace } = request;
        let Some(pod) = self.shelf.find(pod_namespace, pod_name) else {
            self.count(&meters::FAILED_GETS);
            let text = format!("pod {pod_name} in namespace {pod_namespace} not found");
            return Err(Status::unknown(text));
        };
        Ok(GetPodResourcesResponse { pod_resources: Some(of_pod(&pod)) })
    }
}

#[async_trait]
impl Route for Lister {
    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let (service, method) = path.rsplit_once('/').unwrap_or((path.as_str(), ""));
        let version = match service {
            "v1.PodResourcesLister" => "v1",
            "v1alpha1.PodResourcesLister" => "v1alpha1",
            _ => return Status::unimplemented(format!("unknown service {service}")).into_http(),
        };
        let is_known = match version {
            "v1" => ["List", "GetAllocatableResources", "Get"].contains(&method),
            _ => method == "List",
        };
        if !is_known {
            let text = format!("unknown method {method} for service {service}");
            return Status::unimplemented(text).into_http();
        }
        if !self.limiter.take() {
            return Status::resource_exhausted("rejected by rate limit").into_http();
        }
        self.meters.count(&meters::POD_RESOURCES, &[version]);
        match (version, method) {
            ("v1", "List") => {
                let work = |_: ListPodResourcesRequest| async move { Ok(self.list()) };
                grpc::unary(request, CALL, work).await
            }
            ("v1", "Get") => {
                let work = |name: GetPodResourcesRequest| async move { self.get(&name) };
                grpc::unary(request, CALL, work).await
            }
            ("v1", _) => {
                let work = |_: AllocatableResourcesRequest| async move {
                    self.count(&meters::ALLOCATABLES);
                    Ok(AllocatableResourcesResponse {})
                };
                grpc::unary(request, CALL, work).await
            }
            _ => {
                let work = |_: ListPodResourcesRequest| async move { Ok(self.list_first()) };
                grpc::unary(request, CALL, work).await
            }
        }
    }
}

/// A pod with its sidecars and main containers. Containers that end before the pod runs, and ephemeral
/// ones, keep nothing.
fn of_pod(pod: &Pod) -> PodResources {
    let inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars = inits.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let containers = sidecars.chain(main(pod)).map(of_container).collect();
    PodResources { containers, ..named(pod) }
}

fn main(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| &spec.containers)
}

fn of_container(container: &Container) -> ContainerResources {
    ContainerResources { name: container.name.clone() }
}

fn named(pod: &Pod) -> PodResources {
    PodResources {
        name: pod.metadata.name.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        containers: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
