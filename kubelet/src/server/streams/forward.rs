//! Port-forward: each connection of the client's becomes one to the pod's loopback, made in the pod's
//! network namespace by the runtime.

use std::sync::Arc;

use berth_runtime::interface::{Runtime, SandboxId};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::multiplex::Pairing;
use super::remote::Sink;
use super::websocket::Lane;
use crate::server::budget::{Budget, Held, Use};
use crate::server::spdy::frame;
use crate::server::spdy::session::{Gone, Session};

/// How much is read of the pod's answer at once.
const PIECE_BYTES: usize = 32 << 10;

/// The pod whose ports are forwarded.
#[derive(Clone)]
pub(crate) struct Destination {
    /// Makes the connections.
    pub(crate) runtime: Arc<dyn Runtime>,
    /// Where the pod is.
    pub(crate) sandbox: SandboxId,
    /// What its connections may hold.
    pub(crate) budget: Budget,
    /// Its namespace and name, for messages.
    pub(crate) pod: String,
}

impl Destination {
    /// Connects to a port of the pod. The error is words for the client.
    async fn dial(&self, port: u16) -> Result<(TcpStream, Held), String> {
        let held = self.budget.take(Use::Forward).map_err(|(_, text)| text.trim().to_owned())?;
        let dialled = self.runtime.dial(&self.sandbox, port).await;
        dialled.map(|stream| (stream, held)).map_err(|failure| crate::worker::chain(&failure))
    }
}

/// One forwarded connection.
struct Connection {
    port: u16,
    data: mpsc::Receiver<Bytes>,
    out: Sink,
    error: Sink,
}

/// Serves the connections of a SPDY session until the client is gone.
pub(crate) async fn spdy(mut session: Session, destination: Destination) {
    let mut pairing = Pairing::default();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Some(stream) = session.accept().await else { break };
        let Some(pair) = pairing.take(stream).await else { continue };
        let destination = destination.clone();
        connections.spawn(async move {
            let (data, error) = (pair.data, pair.error);
            let reset = data.sender.clone();
            let connection = Connection {
                port: pair.port,
                data: data.data,
                out: Sink::Spdy(data.sender),
                error: Sink::Spdy(error.sender),
            };
            if connection.run(&destination, data.aborted).await.is_err() {
                // The pod's side broke off, and the client is told so.
                let _ = reset.reset(frame::CANCEL).await;
            }
        });
    }
    // The client has closed; what it has begun ends with it.
    connections.shutdown().await;
}

/// Serves one connection a port over WebSocket channels.
pub(crate) async fn channels(
    lanes: Vec<Lane>,
    ports: Vec<u16>,
    (destination, gone): (Destination, CancellationToken),
) {
    let mut connections = JoinSet::new();
    for (lane, port) in lanes.into_iter().zip(ports) {
        let (destination, gone) = (destination.clone(), gone.clone());
        connections.spawn(async move {
            // Both channels begin with the port's number.
            let number = Bytes::copy_from_slice(&port.to_le_bytes());
            let begin = async {
                lane.out.write(number.clone()).await?;
                lane.error.write(number).await
            };
            if begin.await.is_err() {
                return;
            }
            let Lane { data, out, error } = lane;
            let _ = Connection { port, data, out, error }.run(&destination, gone).await;
        });
    }
    while connections.join_next().await.is_some() {}
}

/// The pod ended the connection in another way than by its end.
struct Broken;

impl Connection {
    async fn run(
        self,
        destination: &Destination,
        aborted: CancellationToken,
    ) -> Result<(), Broken> {
        let Self { port, mut data, out, error } = self;
        let dialled = tokio::select! {
            dialled = destination.dial(port) => dialled,
            () = aborted.cancelled() => return Ok(()),
        };
        let (stream, _held) = match dialled {
            Ok(stream) => stream,
            Err(why) => {
                let message =
                    format!("error forwarding port {port} to pod {}: {why}", destination.pod);
                tracing::debug!(message);
                let told: Result<(), Gone> = async {
                    error.write(message.into()).await?;
                    error.finish().await?;
                    out.finish().await
                }
                .await;
                // A client that is gone needs no answer.
                return told.or(Ok(()));
            }
        };
        let _ = stream.set_nodelay(true);
        let (mut from, mut to) = stream.into_split();
        let inward = async {
            while let Some(bytes) = data.recv().await {
                to.write_all(&bytes).await?;
            }
            to.shutdown().await
        };
        let outward = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(PIECE_BYTES);
                if from.read_buf(&mut buffer).await? == 0 {
                    break;
                }
                if out.write(buffer.split().freeze()).await.is_err() {
                    break;
                }
            }
            // A client that is gone needs no end.
            let _ = out.finish().await;
            let _ = error.finish().await;
            Ok::<_, std::io::Error>(())
        };
        tokio::pin!(inward, outward);
        let copied = async {
            tokio::select! {
                result = &mut outward => result,
                // The pod may have more to say after the client's end; a pod that does not take the
                // client's bytes has had its say as well.
                _ = &mut inward => outward.await,
            }
        };
        tokio::select! {
            copied = copied => copied.map_err(|_| Broken),
            () = aborted.cancelled() => Ok(()),
        }
    }
}
