//! The session against a client that speaks frames.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::frame::{self, Control, FIN, Head};
use super::headers::{Headers, Reader, Writer};
use super::session::{Error, MAX_STREAMS, Session, serve};
use crate::server::activity::Activity;

/// A client that writes frames by hand and reads them back.
struct Client {
    wire: DuplexStream,
    deflate: Writer,
    inflate: Reader,
}

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Reply(u32),
    Data(u32, Vec<u8>, bool),
    Reset(u32),
    Ping(u32),
    GoAway,
    End,
}

impl Client {
    async fn open(&mut self, stream: u32, flags: u8) {
        let headers = Headers(vec![("streamtype".into(), format!("s{stream}"))]);
        let block = self.deflate.write(&headers).unwrap();
        self.wire.write_all(&frame::open(stream, flags, &block)).await.unwrap();
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], flags: u8) {
        self.wire.write_all(&frame::data_head(stream, bytes.len(), flags)).await.unwrap();
        self.wire.write_all(bytes).await.unwrap();
    }

    async fn hear(&mut self) -> Heard {
        let mut head = [0; 8];
        if self.wire.read_exact(&mut head).await.is_err() {
            return Heard::End;
        }
        let head = Head::parse(head).unwrap();
        let (Head::Data { length, .. } | Head::Control { length, .. }) = head;
        let mut payload = vec![0; length as usize];
        self.wire.read_exact(&mut payload).await.unwrap();
        match head {
            Head::Data { stream, flags, .. } => Heard::Data(stream, payload, flags & FIN != 0),
            Head::Control { kind: 2, .. } => {
                self.inflate.read(&payload[4..]).unwrap();
                Heard::Reply(u32::from_be_bytes(*payload.first_chunk().unwrap()))
            }
            Head::Control { kind, flags, .. } => {
                match Control::parse(kind, flags, &payload).unwrap() {
                    Control::Reset { stream } => Heard::Reset(stream),
                    Control::Ping { id } => Heard::Ping(id),
                    Control::GoAway => Heard::GoAway,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

fn connect() -> (Client, Session, tokio::task::JoinHandle<Result<(), Error>>) {
    let (near, far) = duplex(4 << 10);
    let (session, carry) = serve(far, Activity::new());
    let client = Client { wire: near, deflate: Writer::new(), inflate: Reader::new() };
    (client, session, tokio::spawn(carry))
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_until_each_half_ends() {
    let (mut client, mut session, carry) = connect();
    client.open(1, 0).await;
    let mut stream = session.accept().await.unwrap();
    assert_eq!(stream.headers.get("streamtype"), Some("s1"));
    stream.sender.accept().await.unwrap();
    assert_eq!(client.hear().await, Heard::Reply(1));
    client.data(1, b"in", 0).await;
    client.data(1, b"", FIN).await;
    assert_eq!(stream.data.recv().await, Some(Bytes::from_static(b"in")));
    assert_eq!(stream.data.recv().await, None);
    assert!(!stream.aborted.is_cancelled(), "half a stream is no abort");
    stream.sender.data(Bytes::from_static(b"out")).await.unwrap();
    stream.sender.finish().await.unwrap();
    assert_eq!(client.hear().await, Heard::Data(1, b"out".to_vec(), false));
    assert_eq!(client.hear().await, Heard::Data(1, Vec::new(), true));
    drop((stream, session));
    assert_eq!(client.hear().await, Heard::GoAway);
    assert_eq!(client.hear().await, Heard::End);
    drop(client);
    carry.await.unwrap().unwrap();
}

#[tokio::test]
async fn pings_are_sent_back_and_what_is_unknown_is_ignored() {
    let (mut client, _session, _carry) = connect();
    client.wire.write_all(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0]).await.unwrap();
    client.data(77, b"nobody's", FIN).await;
    client.wire.write_all(&frame::ping(5)).await.unwrap();
    assert_eq!(client.hear().await, Heard::Ping(5));
}

#[tokio::test]
async fn a_reset_and_the_end_of_the_connection_abort_streams() {
    let (mut client, mut session, _carry) = connect();
    client.open(1, FIN).await;
    client.open(3, 0).await;
    let first = session.accept().await.unwrap();
    let second = session.accept().await.unwrap();
    client.wire.write_all(&frame::reset(1, frame::CANCEL)).await.unwrap();
    first.aborted.cancelled().await;
    assert!(!second.aborted.is_cancelled());
    drop(client);
    second.aborted.cancelled().await;
    assert!(session.accept().await.is_none());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_the_client_and_not_memory() {
    let (mut client, mut session, _carry) = connect();
    client.open(1, 0).await;
    let mut stream = session.accept().await.unwrap();
    let sent = std::sync::atomic::AtomicUsize::new(0);
    let piece = vec![7; 16 << 10];
    let mut flood = Box::pin(async {
        for _ in 0..256 {
            client.data(1, &piece, 0).await;
            sent.fetch_add(piece.len(), std::sync::atomic::Ordering::Relaxed);
        }
        client.data(1, b"", FIN).await;
    });
    // No clock decides: the flood is polled until it can go no further.
    for _ in 0..10_000 {
        let _ = futures::poll!(&mut flood);
        tokio::task::yield_now().await;
    }
    let stuck = sent.load(std::sync::atomic::Ordering::Relaxed);
    assert!(stuck <= 160 << 10, "{stuck} bytes were taken of a stream that nobody reads");
    let drain = async {
        let mut taken = 0;
        while let Some(bytes) = stream.data.recv().await {
            taken += bytes.len();
        }
        taken
    };
    let ((), taken) = tokio::join!(flood, drain);
    assert_eq!(taken, 256 * (16 << 10));
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_until_some_are_over() {
    let (mut client, mut session, _carry) = connect();
    let mut streams = Vec::new();
    let mut id = 1;
    for _ in 0..MAX_STREAMS {
        client.open(id, FIN).await;
        streams.push(session.accept().await.unwrap());
        id += 2;
    }
    client.open(id, FIN).await;
    assert_eq!(client.hear().await, Heard::Reset(id));
    streams.pop();
    client.open(id + 2, FIN).await;
    assert!(session.accept().await.is_some());
}

#[tokio::test]
async fn a_stream_out_of_order_and_a_broken_frame_end_the_connection() {
    let (mut client, _session, carry) = connect();
    client.open(3, 0).await;
    client.open(1, 0).await;
    assert!(matches!(carry.await.unwrap(), Err(Error::Order(1))));
    let (mut client, _session, carry) = connect();
    client.wire.write_all(&[0x80, 9, 0, 1, 0, 0, 0, 0]).await.unwrap();
    assert!(matches!(carry.await.unwrap(), Err(Error::Frame(_))));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_ends_is_left_after_a_while() {
    let (mut client, session, carry) = connect();
    drop(session);
    assert_eq!(client.hear().await, Heard::GoAway);
    let ended = tokio::time::timeout(Duration::from_secs(6), carry).await;
    ended.unwrap().unwrap().unwrap();
}
