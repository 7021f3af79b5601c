//! gRPC on a Unix socket: which path is which call, and what bounds a client.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::calls::Calls;
use super::{About, Backend};

/// The longest message that is read. Requests name things; the longest carries a pod's annotations.
const MAX_REQUEST_BYTES: usize = 1 << 20;

/// The longest message that is sent: what clients of the CRI take.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// How many calls of one connection are under way at once; more wait.
const MAX_CALLS: usize = 32;

/// How long a call may take. Clients have shorter deadlines of their own.
const DEADLINE: Duration = Duration::from_secs(120);

/// The same for a pull.
const PULL_DEADLINE: Duration = Duration::from_secs(3600);

/// How long a silent connection is believed to be there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Serves the socket until `shutdown`; connections end with it. Only root is listened to.
///
/// # Errors
/// When nothing can be accepted any more.
pub async fn serve(
    listener: UnixListener,
    (backend, about): (Arc<dyn Backend>, About),
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let services = Services::new(backend, about);
    let accepted = futures::stream::unfold(listener, |listener| async {
        let stream = listener.accept().await.map(|(stream, _)| stream);
        if stream.is_err() {
            // No descriptors are left: that passes, and is no reason to spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Some((stream, listener))
    });
    let of_root = |accepted: &std::io::Result<UnixStream>| {
        let is_root = match accepted {
            Ok(stream) => stream.peer_cred().is_ok_and(|peer| peer.uid() == 0),
            Err(_) => true,
        };
        std::future::ready(is_root)
    };
    let server = Server::builder()
        .concurrency_limit_per_connection(MAX_CALLS)
        .max_concurrent_streams(u32::try_from(2 * MAX_CALLS).ok())
        .http2_max_header_list_size(16 << 10)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    let end = shutdown.clone();
    let serving =
        server.serve_with_incoming_shutdown(services, accepted.filter(of_root), async move {
            end.cancelled().await;
        });
    // A client that stays must not keep the node.
    let gone = async {
        shutdown.cancelled().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        served = serving => served,
        () = gone => Ok(()),
    }
}

/// Both services of the CRI.
#[derive(Clone)]
pub(super) struct Services {
    calls: Arc<Calls>,
}

impl Services {
    pub(super) fn new(backend: Arc<dyn Backend>, about: About) -> Self {
        Self { calls: Arc::new(Calls { backend, about }) }
    }
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let calls = Arc::clone(&self.calls);
        Box::pin(async move { Ok(route(calls, request).await) })
    }
}

/// The table of what is served.
macro_rules! routes {
    ($calls:ident, $request:ident: $( $service:literal / $method:literal => $call:ident, $deadline:ident; )*) => {
        match $request.uri().path() {
            $( concat!("/runtime.v1.", $service, "/", $method) => {
                unary($request, $deadline, move |message| async move { $calls.$call(message).await }).await
            } )*
            path => Status::unimplemented(format!("berth does not serve {path}")).into_http(),
        }
    };
}

async fn route(calls: Arc<Calls>, request: http::Request<Body>) -> http::Response<Body> {
    routes! { calls, request:
        "RuntimeService" / "Version" => version, DEADLINE;
        "RuntimeService" / "Status" => status, DEADLINE;
        "RuntimeService" / "RuntimeConfig" => runtime_config, DEADLINE;
        "RuntimeService" / "ListPodSandbox" => list_sandboxes, DEADLINE;
        "RuntimeService" / "PodSandboxStatus" => sandbox_status, DEADLINE;
        "RuntimeService" / "StopPodSandbox" => stop_sandbox, DEADLINE;
        "RuntimeService" / "RemovePodSandbox" => remove_sandbox, DEADLINE;
        "RuntimeService" / "ListContainers" => list_containers, DEADLINE;
        "RuntimeService" / "ContainerStatus" => container_status, DEADLINE;
        "ImageService" / "ListImages" => list_images, DEADLINE;
        "ImageService" / "ImageStatus" => image_status, DEADLINE;
        "ImageService" / "PullImage" => pull_image, PULL_DEADLINE;
        "ImageService" / "RemoveImage" => remove_image, DEADLINE;
        "ImageService" / "ImageFsInfo" => image_fs_info, DEADLINE;
    }
}

/// Reads one message, answers it with one.
async fn unary<Q, A, F, W>(
    request: http::Request<Body>,
    deadline: Duration,
    work: F,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Default + Send + 'static,
    F: FnOnce(Q) -> W + Send + 'static,
    W: Future<Output = Result<A, Status>> + Send + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default())
        .apply_max_message_size_config(Some(MAX_REQUEST_BYTES), Some(MAX_ANSWER_BYTES))
        .unary(Once { work: Some(work), deadline }, request)
        .await
}

/// A call that is made once.
struct Once<F> {
    work: Option<F>,
    deadline: Duration,
}

impl<Q, A, F, W> UnaryService<Q> for Once<F>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: FnOnce(Q) -> W,
    W: Future<Output = Result<A, Status>> + Send + 'static,
{
    type Response = A;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let work = self.work.take().map(|work| work(request.into_inner()));
        let deadline = self.deadline;
        Box::pin(async move {
            let Some(work) = work else { return Err(Status::internal("called twice")) };
            // On a task of its own: it goes on when the client leaves.
            let task = tokio::spawn(tokio::time::timeout(deadline, work));
            match task.await {
                Ok(Ok(answer)) => answer.map(Response::new),
                Ok(Err(_)) => Err(Status::deadline_exceeded("berth gave the call up")),
                Err(_) => Err(Status::internal("the call failed")),
            }
        })
    }
}
