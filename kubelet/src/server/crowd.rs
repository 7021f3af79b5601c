//! Connections that ask for nothing, as many as there are places and more.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use futures::{SinkExt, StreamExt};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use super::tests::{Authority, config, connector, guard, running_state};
use super::{Budget, Identities, Streaming, bind, serve, tls};

/// So many connections may be open.
const PLACES: usize = 8;

async fn connect(connector: &TlsConnector, address: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = connector.connect(ServerName::try_from("node").unwrap(), stream).await.unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

#[tokio::test]
async fn connections_without_requests_give_way_and_streams_stay() {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let config = config(root.path(), &authority);
    let mut state = running_state(root.path()).await;
    let shutdown = CancellationToken::new();
    let budget = Budget::of(PLACES as u64 * 8);
    state.streaming = Streaming { shutdown: shutdown.clone(), budget, ..state.streaming };
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let identities = Identities { tls: tls::Live::new(&config).unwrap(), guard: guard() };
    let serving = tokio::spawn(serve(listener, identities, state, shutdown.clone()));
    let admin = connector(root.path(), Some(&authority.issue("admin", "system:masters")));
    let stranger = connector(root.path(), None);

    let mut stream = connect(&admin, address).await;
    let request = Request::get("/exec/ns/p/c?command=cat&input=1&output=1")
        .header(header::HOST, "node")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==")
        .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io");
    let answer = stream.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let upgraded = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut cat = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;

    let (mut silent, mut idle) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for _ in 0..PLACES {
        silent.push(TcpStream::connect(address).await.unwrap());
        let mut sender = connect(&stranger, address).await;
        let request = Request::get("/pods").header(header::HOST, "node").body(Body::empty());
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        idle.push(sender);
    }
    let mut sender = connect(&admin, address).await;
    let request = Request::get("/pods").header(header::HOST, "node").body(Body::empty());
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(begun.elapsed() < super::PATIENCE, "{:?}", begun.elapsed());

    cat.send(Message::Binary(b"\0said".as_slice().into())).await.unwrap();
    let said = async {
        while let Some(message) = cat.next().await {
            if let Message::Binary(bytes) = message.unwrap()
                && bytes.as_ref() == b"\x01said"
            {
                return;
            }
        }
        panic!("the stream ended");
    };
    tokio::time::timeout(Duration::from_secs(5), said).await.unwrap();
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap();
}
