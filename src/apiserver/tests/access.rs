//! The server at the level of connections: strangers, hostile bodies, and logs from the node.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use harness::{NODE, eventually, pod, register_node, serve};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{LogParams, PostParams, WatchEvent, WatchParams};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(pem: &str) -> Arc<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    Arc::new(roots)
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// A connection without a client certificate.
async fn stranger(running: &harness::Running) -> Sender {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(&running.server.credentials.ca_pem))
        .with_no_client_auth();
    let stream = TcpStream::connect(running.server.address).await.unwrap();
    let name = ServerName::try_from("kubernetes.default.svc").unwrap();
    let stream =
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A request without a client certificate.
async fn anonymous(
    running: &harness::Running,
    request: Request<Full<Bytes>>,
) -> (StatusCode, String) {
    let mut sender = stranger(running).await;
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "x").body(Full::default()).unwrap()
}

#[tokio::test]
async fn strangers_see_health_and_version_and_nothing_else() {
    let running = serve().await;
    for path in ["/healthz", "/readyz", "/livez", "/version"] {
        assert_eq!(anonymous(&running, get(path)).await.0, StatusCode::OK, "{path}");
    }
    for path in ["/", "/api", "/api/v1/pods", "/openapi/v3", "/apis/apps/v1/deployments"] {
        let (status, body) = anonymous(&running, get(path)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(body.contains("\"reason\":\"Unauthorized\""), "{body}");
    }
    running.stop().await;
}

/// What clients leave open, some without a word, keeps nobody out; what is under way goes on.
#[tokio::test]
async fn connections_without_requests_give_way() {
    // Each test has a process of its own.
    let few = Rlimit { current: Some(256), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, few).unwrap();
    let running = serve().await;
    let maps: Api<ConfigMap> = Api::namespaced(running.admin().await, "default");
    let watch = maps.watch(&WatchParams::default(), "0").await.unwrap();
    tokio::pin!(watch);
    // An eighth of the descriptors is 32 places: twice as many come.
    let mut idle = Vec::new();
    let begun = Instant::now();
    for round in 0..40 {
        let mut sender = stranger(&running).await;
        assert_eq!(sender.send_request(get("/version")).await.unwrap().status(), StatusCode::OK);
        idle.push(sender);
        if round % 2 == 0 {
            let silent = TcpStream::connect(running.server.address).await.unwrap();
            tokio::spawn(async move {
                let _silent = silent;
                std::future::pending::<()>().await;
            });
        }
    }
    assert_eq!(anonymous(&running, get("/healthz")).await.0, StatusCode::OK);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let made = ConfigMap {
        metadata: ObjectMeta { name: Some("made".into()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    };
    maps.create(&PostParams::default(), &made).await.unwrap();
    let seen = async {
        while let Some(event) = watch.try_next().await.unwrap() {
            if matches!(event, WatchEvent::Added(map) if map.metadata.name.as_deref() == Some("made"))
            {
                return;
            }
        }
        panic!("the watch ended");
    };
    tokio::time::timeout(Duration::from_secs(5), seen).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn hostile_bodies_are_refused_and_the_server_lives_on() {
    let running = serve().await;
    let client = running.admin().await;
    let post = |body: Vec<u8>, media_type: &str| {
        Request::builder()
            .method(Method::POST)
            .uri("/api/v1/namespaces/default/configmaps")
            .header("content-type", media_type)
            .body(body)
            .unwrap()
    };
    let deep = "[".repeat(200_000).into_bytes();
    let huge = vec![b' '; 4 << 20];
    for (body, media_type, expected) in [
        (deep, "application/json", 400),
        (huge, "application/json", 413),
        (b"{".to_vec(), "application/json", 400),
        (b"k8s\0\xff\xff".to_vec(), "application/vnd.kubernetes.protobuf", 400),
        (b"a: b".to_vec(), "application/yaml", 415),
    ] {
        let error = client.request_text(post(body, media_type)).await.unwrap_err();
        let kube::Error::Api(status) = error else { panic!("{error:?}") };
        assert_eq!(status.code, expected, "{media_type}: {}", status.message);
    }
    assert_eq!(anonymous(&running, get("/healthz")).await.0, StatusCode::OK);
    running.stop().await;
}

/// A node's API that tells what it was asked, and by whom.
async fn fake_node(running: &harness::Running) -> u16 {
    let files = &running.server.credentials;
    let cert = CertificateDer::from_pem_file(&files.kubelet_serving.cert).unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.kubelet_serving.key).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        roots(&files.ca_pem),
        provider(),
    )
    .build()
    .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![cert], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
                let asked = request.uri().to_string();
                Ok::<_, std::convert::Infallible>(match asked.contains("/broken/") {
                    true => {
                        let mut response = Response::new(Full::<Bytes>::from("no such container"));
                        *response.status_mut() = StatusCode::NOT_FOUND;
                        response
                    }
                    false => Response::new(Full::<Bytes>::from(format!("{asked}\n"))),
                })
            });
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn logs_come_from_the_node_with_the_query_passed_on() {
    let running = serve().await;
    let (admin, agent) = (running.admin().await, running.agent().await);
    let port = fake_node(&running).await;
    register_node(&agent, port).await;
    let pods: Api<Pod> = Api::namespaced(admin, "default");
    for name in ["web", "broken"] {
        pods.create(&PostParams::default(), &pod(name)).await.unwrap();
        eventually("the pod is bound", || async {
            pods.get(name).await.unwrap().spec.unwrap().node_name.as_deref() == Some(NODE)
        })
        .await;
    }
    let params = LogParams { tail_lines: Some(7), timestamps: true, ..LogParams::default() };
    let log = pods.logs("web", &params).await.unwrap();
    assert_eq!(log, "/containerLogs/default/web/main?tailLines=7&timestamps=true\n");
    let error = pods.logs("broken", &LogParams::default()).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("{error:?}") };
    assert_eq!((status.code, status.message.as_str()), (404, "no such container"));
    let params = LogParams { container: Some("../x".into()), ..LogParams::default() };
    assert!(pods.logs("web", &params).await.is_err(), "only containers of the pod");
    running.stop().await;
}
