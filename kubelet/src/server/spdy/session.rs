//! One SPDY/3.1 connection seen from the server: streams that the client opens, frames both ways.
//!
//! ```text
//! client ──► reader ──► a short queue a stream ──► whoever serves the stream
//!        ◄── writer ◄── one short queue of frames ◄──┘
//! ```
//!
//! Everything is bounded: streams, the queue of each, frames that wait to be written. A stream that
//! nobody reads holds up the connection, and so, through TCP, the client.
//!
//! Differs: WINDOW_UPDATE is neither sent nor obeyed. The clients of Kubernetes never send it, so a
//! server that kept to the initial window would stop after 64 KiB.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::frame::{self, Control, Head, StreamId};
use super::headers::{self, Headers};
use crate::server::activity::Activity;

/// How many streams may be open at once.
pub(crate) const MAX_STREAMS: usize = 512;
/// How much of a data frame is passed on at once.
const PIECE_BYTES: usize = 16 << 10;
/// How many pieces may wait in a stream.
const QUEUE: usize = 4;
/// How many frames may wait to be written.
const FRAMES: usize = 8;
/// The longest data frame that is sent.
const DATA_BYTES: usize = 64 << 10;
/// How long the client may take to end the connection once all has been said.
const LINGER: Duration = Duration::from_secs(5);

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("connection lost")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] frame::Error),
    #[error(transparent)]
    Headers(#[from] headers::Error),
    #[error("stream {0} opened out of order")]
    Order(StreamId),
}

/// A frame to be written.
#[derive(Debug)]
enum Outgoing {
    Reply(StreamId),
    Data(StreamId, Bytes),
    Finish(StreamId),
    Reset(StreamId, u32),
    Pong(u32),
}

/// Streams that the client opens, in order. Dropping this and all streams ends the connection.
pub(crate) struct Session {
    incoming: mpsc::Receiver<Stream>,
    _frames: mpsc::Sender<Outgoing>,
}

impl Session {
    /// The next stream; `None` once the client is gone or opens no more.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }
}

/// A stream that the client has opened.
pub(crate) struct Stream {
    /// What it said of it.
    pub(crate) headers: Headers,
    /// What it sends; ends with its half, or with the connection.
    pub(crate) data: mpsc::Receiver<Bytes>,
    /// The way back.
    pub(crate) sender: Sender,
    /// Cancelled when the client wants no more of it, or is gone.
    pub(crate) aborted: CancellationToken,
}

/// The way back of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    stream: StreamId,
    frames: mpsc::Sender<Outgoing>,
    _slot: Arc<OwnedSemaphorePermit>,
}

/// The connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone")]
pub(crate) struct Gone;

impl Sender {
    /// Tells the client that its stream is served.
    pub(crate) async fn accept(&self) -> Result<(), Gone> {
        self.send(Outgoing::Reply(self.stream)).await
    }

    /// Sends bytes; waits while the client does not take them.
    pub(crate) async fn data(&self, bytes: Bytes) -> Result<(), Gone> {
        match bytes.is_empty() {
            true => Ok(()),
            false => self.send(Outgoing::Data(self.stream, bytes)).await,
        }
    }

    /// Says that no more will be sent.
    pub(crate) async fn finish(&self) -> Result<(), Gone> {
        self.send(Outgoing::Finish(self.stream)).await
    }

    /// Ends both halves.
    pub(crate) async fn reset(&self, status: u32) -> Result<(), Gone> {
        self.send(Outgoing::Reset(self.stream, status)).await
    }

    async fn send(&self, frame: Outgoing) -> Result<(), Gone> {
        self.frames.send(frame).await.map_err(|_| Gone)
    }
}

/// Takes a connection over. The future carries it and ends with it.
pub(crate) fn serve<T>(
    transport: T,
    activity: Activity,
) -> (Session, impl Future<Output = Result<(), Error>> + Send)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let (frames, outgoing) = mpsc::channel(FRAMES);
    let (streams, incoming) = mpsc::channel(16);
    let inbound = Inbound {
        inflate: headers::Reader::new(),
        open: BTreeMap::new(),
        last: 0,
        streams: Some(streams),
        frames: frames.downgrade(),
        slots: Arc::new(Semaphore::new(MAX_STREAMS)),
        closed: CancellationToken::new(),
        activity: activity.clone(),
    };
    let session = Session { incoming, _frames: frames };
    let carry = async move {
        let (reader, writer) = tokio::io::split(transport);
        // Whatever ends this, the streams learn it.
        let _guard = inbound.closed.clone().drop_guard();
        let read = inbound.run(BufReader::with_capacity(32 << 10, reader));
        let write = write(writer, outgoing, activity);
        tokio::pin!(read, write);
        tokio::select! {
            result = &mut read => result,
            result = &mut write => {
                result?;
                // All is said. What the client still sends must be taken, or a reset of the
                // connection would overtake our last words.
                tokio::time::timeout(LINGER, read).await.unwrap_or(Ok(()))
            }
        }
    };
    (session, carry)
}

/// A stream as the reader knows it.
struct Open {
    /// Where its data goes; absent after the client's half has ended.
    queue: Option<mpsc::Sender<Bytes>>,
    aborted: CancellationToken,
    /// Alive as long as somebody serves the stream.
    slot: Weak<OwnedSemaphorePermit>,
}

/// Reads what the client sends.
struct Inbound {
    inflate: headers::Reader,
    open: BTreeMap<StreamId, Open>,
    last: StreamId,
    streams: Option<mpsc::Sender<Stream>>,
    frames: mpsc::WeakSender<Outgoing>,
    slots: Arc<Semaphore>,
    closed: CancellationToken,
    activity: Activity,
}

impl Inbound {
    /// Reads until the client ends the connection.
    async fn run<R: AsyncRead + Unpin>(mut self, mut reader: R) -> Result<(), Error> {
        loop {
            let mut head = [0; frame::HEAD_BYTES];
            match reader.read_exact(&mut head).await {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            };
            match Head::parse(head)? {
                Head::Data { stream, flags, length } => {
                    self.data(&mut reader, stream, length).await?;
                    if flags & frame::FIN != 0 {
                        self.end(stream);
                    }
                }
                Head::Control { kind, flags, length } => {
                    let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
                    reader.read_exact(&mut payload).await?;
                    self.control(Control::parse(kind, flags, &payload)?).await?;
                }
            }
            self.activity.touch();
        }
    }

    async fn data<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        stream: StreamId,
        length: u32,
    ) -> Result<(), Error> {
        let mut left = usize::try_from(length).unwrap_or(0);
        while left > 0 {
            let mut piece = BytesMut::zeroed(left.min(PIECE_BYTES));
            reader.read_exact(&mut piece).await?;
            left -= piece.len();
            self.activity.touch();
            if let Some(Open { queue: Some(queue), aborted, .. }) = self.open.get(&stream) {
                // A stream whose owner has gone takes nothing more.
                tokio::select! {
                    _ = queue.send(piece.freeze()) => {}
                    () = aborted.cancelled() => {}
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, stream: StreamId) {
        if let Some(open) = self.open.get_mut(&stream) {
            open.queue = None;
        }
    }

    async fn control(&mut self, control: Control<'_>) -> Result<(), Error> {
        match control {
            Control::Open { stream, fin, block } => {
                let headers = self.inflate.read(block)?;
                self.begin(stream, headers).await?;
                if fin {
                    self.end(stream);
                }
            }
            Control::Headers { block } => drop(self.inflate.read(block)?),
            Control::Reset { stream } => {
                if let Some(open) = self.open.remove(&stream) {
                    open.aborted.cancel();
                }
            }
            Control::Ping { id } => self.answer(Outgoing::Pong(id)).await,
            Control::GoAway => self.streams = None,
            Control::Other => {}
        }
        Ok(())
    }

    async fn begin(&mut self, stream: StreamId, headers: Headers) -> Result<(), Error> {
        if stream.is_multiple_of(2) || stream <= self.last {
            return Err(Error::Order(stream));
        }
        self.last = stream;
        self.open.retain(|_, open| open.slot.strong_count() > 0);
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        let (Ok(slot), Some(streams), Some(frames)) =
            (slot, self.streams.clone(), self.frames.upgrade())
        else {
            self.answer(Outgoing::Reset(stream, frame::REFUSED)).await;
            return Ok(());
        };
        let slot = Arc::new(slot);
        let (queue, data) = mpsc::channel(QUEUE);
        let aborted = self.closed.child_token();
        let open =
            Open { queue: Some(queue), aborted: aborted.clone(), slot: Arc::downgrade(&slot) };
        let sender = Sender { stream, frames, _slot: slot };
        if streams.send(Stream { headers, data, sender, aborted }).await.is_ok() {
            self.open.insert(stream, open);
        } else {
            self.answer(Outgoing::Reset(stream, frame::REFUSED)).await;
        }
        Ok(())
    }

    /// Queues a frame of our own; a connection that is ending answers no more.
    async fn answer(&self, frame: Outgoing) {
        if let Some(frames) = self.frames.upgrade() {
            let _ = frames.send(frame).await;
        }
    }
}

/// Writes frames until nobody is left who could send any, then says goodbye.
async fn write<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut frames: mpsc::Receiver<Outgoing>,
    activity: Activity,
) -> Result<(), Error> {
    let mut deflate = headers::Writer::new();
    let mut last = 0;
    while let Some(next) = frames.recv().await {
        match next {
            Outgoing::Reply(stream) => {
                last = last.max(stream);
                let block = deflate.write(&Headers::default())?;
                writer.write_all(&frame::reply(stream, &block)).await?;
            }
            Outgoing::Data(stream, bytes) => {
                for piece in bytes.chunks(DATA_BYTES) {
                    writer.write_all(&frame::data_head(stream, piece.len(), 0)).await?;
                    writer.write_all(piece).await?;
                    activity.touch();
                }
            }
            Outgoing::Finish(stream) => {
                writer.write_all(&frame::data_head(stream, 0, frame::FIN)).await?;
            }
            Outgoing::Reset(stream, status) => {
                writer.write_all(&frame::reset(stream, status)).await?;
            }
            Outgoing::Pong(id) => writer.write_all(&frame::ping(id)).await?,
        }
        if frames.is_empty() {
            writer.flush().await?;
        }
    }
    writer.write_all(&frame::go_away(last)).await?;
    writer.flush().await?;
    Ok(writer.shutdown().await?)
}
