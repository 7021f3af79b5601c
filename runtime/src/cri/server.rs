//! The CRI's socket: which path is which call, and what bounds a client.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::calls::Calls;
use super::{About, Backend};
use crate::grpc::{self, Body, Bounds, Connection, Route, Service, http};

/// How many connections are served at once; more wait.
const MAX_CONNECTIONS: usize = 64;

/// How many calls of one connection are under way at once; more wait.
const MAX_CALLS: usize = 32;

/// Requests name things; the longest carries a pod's annotations. Answers are as long as clients of the
/// CRI take, and clients have shorter deadlines of their own.
const CALL: Bounds =
    Bounds { request_bytes: 1 << 20, answer_bytes: 16 << 20, deadline: Duration::from_secs(120) };

/// The same for a pull.
const PULL: Bounds = Bounds { deadline: Duration::from_secs(3600), ..CALL };

/// The same for a checkpoint, whose client says how long it may take.
const CHECKPOINT: Bounds = PULL;

/// Serves the socket until `shutdown`; connections end with it. Only root is listened to.
///
/// # Errors
/// When nothing can be accepted any more.
pub async fn serve(
    listener: UnixListener,
    (backend, about): (Arc<dyn Backend>, About),
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let of_root = |accepted: &std::io::Result<Connection>| {
        let is_root = match accepted {
            Ok(connection) => connection.peer().is_ok_and(|peer| peer.uid() == 0),
            Err(_) => true,
        };
        std::future::ready(is_root)
    };
    let connections = grpc::accept(listener, MAX_CONNECTIONS).filter(of_root);
    grpc::serve(connections, (services(backend, about), MAX_CALLS), shutdown).await
}

/// Both services of the CRI.
pub(super) fn services(backend: Arc<dyn Backend>, about: About) -> Service<Calls> {
    Service::new(Calls { backend, about })
}

/// The table of what is served.
macro_rules! routes {
    ($calls:ident, $request:ident: $( $service:literal / $method:literal => $call:ident, $bounds:ident; )*) => {
        match $request.uri().path() {
            $( concat!("/runtime.v1.", $service, "/", $method) => {
                grpc::unary($request, $bounds, move |message| async move { $calls.$call(message).await }).await
            } )*
            path => Status::unimplemented(format!("berth does not serve {path}")).into_http(),
        }
    };
}

#[async_trait]
impl Route for Calls {
    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        let calls = self;
        routes! { calls, request:
            "RuntimeService" / "Version" => version, CALL;
            "RuntimeService" / "Status" => status, CALL;
            "RuntimeService" / "RuntimeConfig" => runtime_config, CALL;
            "RuntimeService" / "ListPodSandbox" => list_sandboxes, CALL;
            "RuntimeService" / "PodSandboxStatus" => sandbox_status, CALL;
            "RuntimeService" / "StopPodSandbox" => stop_sandbox, CALL;
            "RuntimeService" / "RemovePodSandbox" => remove_sandbox, CALL;
            "RuntimeService" / "ListContainers" => list_containers, CALL;
            "RuntimeService" / "ContainerStatus" => container_status, CALL;
            "RuntimeService" / "CheckpointContainer" => checkpoint_container, CHECKPOINT;
            "ImageService" / "ListImages" => list_images, CALL;
            "ImageService" / "ImageStatus" => image_status, CALL;
            "ImageService" / "PullImage" => pull_image, PULL;
            "ImageService" / "RemoveImage" => remove_image, CALL;
            "ImageService" / "ImageFsInfo" => image_fs_info, CALL;
        }
    }
}
