//! gRPC on a Unix socket, as far as the node's own sockets need it: one message for one message, and
//! bounds for what clients can make the node keep.
//!
//! ```text
//! connection, one of so many ─► Server: one of so many streams ─► Route: path ─► message ─► a task of its own
//! ```
//!
//! What each path does is its [`Route`]'s matter.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use futures::future::BoxFuture;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::server::{Grpc, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response};
use tonic_prost::ProstCodec;

pub use tonic::body::Body;
pub use tonic::codegen::http;
pub use tonic::{Code, Status};

/// How long a silent connection is believed to be there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What a call may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The longest message that is read.
    pub request_bytes: usize,
    /// The longest message that is sent.
    pub answer_bytes: usize,
    /// How long the work may take.
    pub deadline: Duration,
}

/// Which path is which call.
#[async_trait]
pub trait Route: Send + Sync + 'static {
    /// Answers a request.
    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body>;
}

/// A [`Route`] as tonic serves it. Cloning shares it.
pub struct Service<R>(Arc<R>);

impl<R> Service<R> {
    /// Serves this.
    pub fn new(route: R) -> Self {
        Self(Arc::new(route))
    }
}

impl<R> Clone for Service<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Route> tower_service::Service<http::Request<Body>> for Service<R> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let route = Arc::clone(&self.0);
        Box::pin(async move { Ok(route.route(request).await) })
    }
}

/// A client's connection; a place is free again when it is dropped.
pub struct Connection {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// As whom the client connected.
    ///
    /// # Errors
    /// The system call's.
    pub fn peer(&self) -> io::Result<tokio::net::unix::UCred> {
        self.stream.peer_cred()
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Connections to a socket, at most so many at a time: more wait until one of them ends.
pub fn accept(
    listener: UnixListener,
    connections: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(connections));
    futures::stream::unfold((listener, places), |(listener, places)| async {
        let place = Arc::clone(&places).acquire_owned().await.ok()?;
        let accepted = listener.accept().await;
        if accepted.is_err() {
            // No descriptors are left: that passes, and is no reason to spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let connection = accepted.map(|(stream, _)| Connection { stream, _place: place });
        Some((connection, (listener, places)))
    })
}

/// Serves connections until `shutdown`, and so many calls of each at a time; more wait. Connections end
/// with it.
///
/// # Errors
/// When nothing can be accepted any more.
pub async fn serve<R: Route>(
    connections: impl Stream<Item = io::Result<Connection>>,
    (service, calls): (Service<R>, usize),
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let server = Server::builder()
        .concurrency_limit_per_connection(calls)
        .max_concurrent_streams(u32::try_from(2 * calls).ok())
        .http2_max_header_list_size(16 << 10)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    let end = shutdown.clone();
    let serving = server.serve_with_incoming_shutdown(service, connections, async move {
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

/// Reads one message, answers it with one. The work is done on a task of its own: it goes on when the
/// client leaves.
pub async fn unary<Q, A, F, W>(
    request: http::Request<Body>,
    bounds: Bounds,
    work: F,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Default + Send + 'static,
    F: FnOnce(Q) -> W + Send + 'static,
    W: Future<Output = Result<A, Status>> + Send + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default())
        .apply_max_message_size_config(Some(bounds.request_bytes), Some(bounds.answer_bytes))
        .unary(Once { work: Some(work), deadline: bounds.deadline }, request)
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
            let task = tokio::spawn(tokio::time::timeout(deadline, work));
            match task.await {
                Ok(Ok(answer)) => answer.map(Response::new),
                Ok(Err(_)) => Err(Status::deadline_exceeded("berth gave the call up")),
                Err(_) => Err(Status::internal("the call failed")),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn more_connections_than_there_are_places_wait_for_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut accepted = Box::pin(accept(UnixListener::bind(&path).unwrap(), 2));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(UnixStream::connect(&path).await.unwrap());
        }
        let first = accepted.next().await.unwrap().unwrap();
        let _second = accepted.next().await.unwrap().unwrap();
        assert!(first.peer().is_ok());
        assert!(futures::poll!(accepted.next()).is_pending(), "the third waits");
        drop(first);
        assert!(accepted.next().await.unwrap().is_ok());
    }
}
