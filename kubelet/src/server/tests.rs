//! The HTTP API over in-memory connections: who is let in, and what is served.

use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::config::Config;
use crate::fake::{FakeClock, FakeMaterials, FakeRuntime};
use crate::worker::materials::{ContainerRequest, Materials as _};

pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub(super) type Pair = (String, String);

impl Authority {
    pub(super) fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "ca");
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::self_signed(parameters, key).unwrap() }
    }

    pub(super) fn issue(&self, user: &str, group: &str) -> Pair {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, user);
        parameters.distinguished_name.push(DnType::OrganizationName, group);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

pub(super) fn config(root: &Path, authority: &Authority) -> Config {
    let ca = root.join("ca.crt");
    std::fs::write(&ca, authority.issuer.pem()).unwrap();
    let mut config = Config::new("node", vec!["192.0.2.1".parse().unwrap()]);
    config.root_dir = root.to_owned();
    config.server.client_ca = Some(ca);
    config
}

pub(super) fn connector(root: &Path, identity: Option<&Pair>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let server = CertificateDer::from_pem_file(root.join("pki/kubelet.crt")).unwrap();
    roots.add(server).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
            let chain = chain.collect::<Result<_, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    TlsConnector::from(Arc::new(config))
}

/// A connection's place.
pub(super) async fn place() -> Place {
    Guests::new(1, CancellationToken::new()).admit().await.unwrap()
}

/// Asks for `path`; `None` when the connection is refused in the handshake.
pub(super) async fn ask(
    (connector, acceptor): (&TlsConnector, &TlsAcceptor),
    router: &Router,
    (method, path): (&str, &str),
) -> Option<(StatusCode, String)> {
    let (near, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(connection(far, acceptor.clone(), router.clone(), place().await));
    let name = ServerName::try_from("node").unwrap();
    let stream = connector.connect(name, near).await.ok()?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "node");
    let response = sender.send_request(request.body(Body::empty()).unwrap()).await.ok()?;
    let status = response.status();
    let body = axum::body::to_bytes(Body::new(response.into_body()), 1 << 20).await.unwrap();
    Some((status, String::from_utf8(body.to_vec()).unwrap()))
}

pub(super) fn state(root: &Path) -> State {
    let clock: Arc<dyn Clock> = Arc::new(FakeClock::new());
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u1"},
        "spec": {"containers": [{"name": "c"}]},
    }))
    .unwrap();
    let shelf = Shelf::default();
    shelf.put(&Arc::new(pod), &PodStatus::default());
    let runtime = FakeRuntime::new(Arc::clone(&clock));
    let shutdown = CancellationToken::new();
    let streaming = Streaming { idle_timeout: Duration::ZERO, shutdown, budget: Budget::of(1024) };
    let node = Measured::new("node".to_owned(), crate::disk::Disk::new(root.to_owned()));
    let configuration = Arc::new(json!({"maxPods": 7}));
    let log_root = root.to_owned();
    let system_logs = SystemLogs::of_host(crate::config::SystemLogs::Off);
    let started = clock.now();
    State {
        shelf,
        runtime,
        images: Arc::new(crate::fake::FakeImages::default()),
        log_root,
        clock,
        streaming,
        node,
        configuration,
        system_logs,
        probes: Counts::default(),
        meters: Meters::default(),
        health: Health::new(|| true),
        process: Process { started, flags: Arc::new([("v".into(), "2".into())].into()) },
        set_verbosity: Some(|level| if level < 11 { Ok(()) } else { Err("too much".to_owned()) }),
        is_profiled: true,
        checkpoints: Some(root.to_owned()),
    }
}

/// The same with the pod's container running.
pub(super) async fn running_state(root: &Path) -> State {
    let state = state(root);
    let materials = FakeMaterials::default();
    let pod = state.shelf.find("ns", "p").unwrap();
    let image = crate::fake::image("image");
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let sandbox = materials.sandbox(&pod, 0).await.unwrap();
    let sandbox = state.runtime.run_sandbox(sandbox).await.unwrap();
    let request = ContainerRequest {
        pod: &pod,
        container,
        image: &image,
        attempt: 0,
        volume_images: Default::default(),
        pod_ips: vec![],
        before: None,
    };
    let config = materials.container(request).await.unwrap();
    let id = state.runtime.create_container(&sandbox.id, config).await.unwrap();
    state.runtime.start_container(&id).await.unwrap();
    state
}

/// Nobody but administrators may do anything.
struct Nobody;

#[async_trait::async_trait]
impl auth::Reviewer for Nobody {
    async fn token(&self, _: &str) -> Result<Option<Identity>, auth::Unanswered> {
        Ok(None)
    }

    async fn access(
        &self,
        _: &str,
        identity: &Identity,
        _: &auth::Attributes,
    ) -> Result<bool, auth::Unanswered> {
        Ok(identity.user == "kube-apiserver-kubelet-client")
    }
}

pub(super) fn guard() -> Guard {
    Guard::new("node".to_owned(), Arc::new(Nobody))
}

const PATHS: [&str; 7] = [
    "/healthz",
    "/pods",
    "/runningpods/",
    "/containerLogs/ns/p/c",
    "/metrics",
    "/debug/pprof/",
    "/",
];

#[tokio::test]
async fn whoever_has_no_certificate_is_turned_away_from_every_path() {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let acceptor = tls::acceptor(&config(root.path(), &authority)).unwrap();
    let router = guarded(state(root.path()), guard());
    let nobody = connector(root.path(), None);
    for path in PATHS {
        for method in ["GET", "POST", "DELETE", "OPTIONS"] {
            let reply = ask((&nobody, &acceptor), &router, (method, path)).await;
            assert_eq!(reply.unwrap().0, StatusCode::UNAUTHORIZED, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_no_certificate() {
    let root = tempfile::tempdir().unwrap();
    let acceptor = tls::acceptor(&config(root.path(), &Authority::new())).unwrap();
    let router = guarded(state(root.path()), guard());
    let stranger = Authority::new().issue("admin", "system:masters");
    let stranger = connector(root.path(), Some(&stranger));
    assert_eq!(ask((&stranger, &acceptor), &router, ("GET", "/pods")).await, None);
}

#[tokio::test]
async fn administrators_and_the_api_server_are_let_in_and_others_are_not() {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let acceptor = tls::acceptor(&config(root.path(), &authority)).unwrap();
    let router = guarded(state(root.path()), guard());
    for (user, group, expected) in [
        ("admin", "system:masters", StatusCode::OK),
        ("kube-apiserver-kubelet-client", "x", StatusCode::OK),
        ("system:node:other", "system:nodes", StatusCode::FORBIDDEN),
        ("system:masters", "nobody", StatusCode::FORBIDDEN),
    ] {
        let pair = authority.issue(user, group);
        let caller = connector(root.path(), Some(&pair));
        let reply = ask((&caller, &acceptor), &router, ("GET", "/pods")).await;
        assert_eq!(reply.unwrap().0, expected, "{user} of {group}");
    }
}

#[tokio::test]
async fn what_is_asked_for_in_vain_is_told() {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let acceptor = tls::acceptor(&config(root.path(), &authority)).unwrap();
    let state = state(root.path());
    let shown = |name: &str, state: Value| {
        json!({
            "name": name, "containerID": "berth://1", "image": "i", "imageID": "i", "ready": false,
            "restartCount": 0, "state": state,
        })
    };
    let cleared: Pod = serde_json::from_value(json!({
        "metadata": {"name": "cleared", "namespace": "ns", "uid": "u2"},
        "spec": {"containers": [{"name": "c"}, {"name": "d"}], "ephemeralContainers": [{"name": "e"}]},
        "status": {
            "containerStatuses": [
                shown("c", json!({"terminated": {"exitCode": 0}})),
                shown("d", json!({"waiting": {"reason": "ImagePullBackOff"}})),
            ],
            "ephemeralContainerStatuses": [shown("e", json!({"waiting": {"reason": "ErrImagePull"}}))],
        },
    }))
    .unwrap();
    let status = cleared.status.clone().unwrap();
    state.shelf.put(&Arc::new(cleared), &status);
    let router = guarded(state, guard());
    let admin = authority.issue("admin", "system:masters");
    let admin = connector(root.path(), Some(&admin));
    for (method, path, expected, text) in [
        (
            "GET",
            "/containerLogs/ns/cleared/c",
            400,
            "unable to retrieve container logs for berth://1",
        ),
        (
            "GET",
            "/containerLogs/ns/cleared/d",
            400,
            "is waiting to start: trying and failing to pull image",
        ),
        ("GET", "/containerLogs/ns/cleared/e", 400, "is waiting to start: image can't be pulled"),
        ("GET", "/nothing", 404, "404 page not found"),
        ("POST", "/pods", 405, ""),
        ("GET", "/containerLogs/ns/missing/c", 404, "does not exist"),
        ("GET", "/containerLogs/ns/p/missing", 404, "not found in pod"),
        ("GET", "/containerLogs/ns/p/c", 400, "is waiting to start: ContainerCreating"),
        ("GET", "/containerLogs/ns/p/c?tailLines=-1", 422, "tailLines"),
        ("GET", "/containerLogs/ns/p/c?tailLines=x", 400, ""),
        ("GET", "/containerLogs/ns/p/c?sinceSeconds=1&sinceTime=2024-01-01T00:00:00Z", 422, ""),
        ("GET", "/pods", 200, "\"kind\":\"PodList\""),
    ] {
        let (status, body) = ask((&admin, &acceptor), &router, (method, path)).await.unwrap();
        assert_eq!(status.as_u16(), expected, "{method} {path}: {body}");
        assert!(body.contains(text), "{path}: {body}");
    }
}

#[tokio::test]
async fn an_authority_that_is_replaced_counts_for_the_next_connection() {
    let root = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    let config = config(root.path(), &old);
    let live = tls::Live::new(&config).unwrap();
    let router = guarded(state(root.path()), guard());
    let admin = |authority: &Authority| {
        let pair = authority.issue("admin", "system:masters");
        connector(root.path(), Some(&pair))
    };
    let (with_old, with_new) = (admin(&old), admin(&new));
    let answer = ask((&with_old, &live.acceptor()), &router, ("GET", "/pods")).await;
    assert_eq!(answer.unwrap().0, StatusCode::OK);
    let file = config.server.client_ca.clone().unwrap();
    std::fs::write(&file, new.issuer.pem()).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(2);
    std::fs::File::options().append(true).open(&file).unwrap().set_modified(later).unwrap();
    let answer = ask((&with_old, &live.acceptor()), &router, ("GET", "/pods")).await;
    assert_eq!(answer, None, "the old authority is believed no more");
    let answer = ask((&with_new, &live.acceptor()), &router, ("GET", "/pods")).await;
    assert_eq!(answer.unwrap().0, StatusCode::OK);
    std::fs::write(&file, "torn").unwrap();
    let answer = ask((&with_new, &live.acceptor()), &router, ("GET", "/pods")).await;
    assert_eq!(answer.unwrap().0, StatusCode::OK, "a torn file changes nothing");
}

#[test]
fn a_serving_certificate_is_kept_while_it_fits_the_node() {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let mut config = config(root.path(), &authority);
    let read = || std::fs::read(root.path().join("pki/kubelet.crt")).unwrap();
    tls::acceptor(&config).map(drop).unwrap();
    let first = read();
    tls::acceptor(&config).map(drop).unwrap();
    assert_eq!(read(), first);
    config.node_ips.push("192.0.2.2".parse().unwrap());
    tls::acceptor(&config).map(drop).unwrap();
    assert_ne!(read(), first);
    let key = std::fs::metadata(root.path().join("pki/kubelet.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
}

#[test]
fn an_authority_that_is_none_is_an_error_with_its_path() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path(), &Authority::new());
    let path = root.path().join("empty");
    std::fs::write(&path, b"").unwrap();
    config.server.client_ca = Some(path.clone());
    let error = tls::acceptor(&config).map(drop).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
}

/// What a state answers to a request that has been let in.
async fn answer(state: &State, path: &str, accept: &str) -> (u16, String) {
    use tower_service::Service as _;
    let request = Request::get(path).header("accept", accept).body(Body::empty()).unwrap();
    let response = routes(state.clone()).call(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn health_is_told_check_by_check_and_counted() {
    let root = tempfile::tempdir().unwrap();
    let mut state = state(root.path());
    let syncs = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let seen = Arc::clone(&syncs);
    state.health = Health::new(move || seen.load(std::sync::atomic::Ordering::Relaxed));
    for path in ["/healthz", "/healthz/ping", "/healthz/log", "/healthz/syncloop"] {
        assert_eq!(answer(&state, path, "").await, (200, "ok".to_owned()), "{path}");
    }
    assert_eq!(answer(&state, "/healthz/other", "").await.0, 404);
    let verbose = "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n";
    assert_eq!(answer(&state, "/healthz?verbose", "").await, (200, verbose.to_owned()));
    syncs.store(false, std::sync::atomic::Ordering::Relaxed);
    let ill = "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n";
    assert_eq!(answer(&state, "/healthz", "").await, (500, ill.to_owned()));
    assert_eq!(answer(&state, "/healthz/ping", "").await.0, 200);
    assert_eq!(answer(&state, "/healthz/syncloop", "").await.0, 500);
    let (_, text) = answer(&state, "/metrics/slis", "").await;
    for line in [
        r#"kubernetes_healthcheck{name="ping",type="healthz"} 1"#,
        r#"kubernetes_healthcheck{name="syncloop",type="healthz"} 0"#,
        r#"kubernetes_healthchecks_total{name="syncloop",status="error",type="healthz"} 2"#,
        r#"kubernetes_healthchecks_total{name="syncloop",status="success",type="healthz"} 3"#,
    ] {
        assert!(text.lines().any(|one| one == line), "{line}\n{text}");
    }
    assert_eq!(answer(&state, "/metrics/probes", "").await.0, 200);
}

#[tokio::test]
async fn the_agent_tells_of_itself_in_words_or_as_an_object() {
    let root = tempfile::tempdir().unwrap();
    let state = state(root.path());
    for accept in ["", "text/plain", "*/*", "application/xml, text/*"] {
        let (status, text) = answer(&state, "/statusz", accept).await;
        assert!(status == 200 && text.starts_with("\nkubelet statusz\nWarning: "), "{text}");
        assert!(text.contains("\nUp: 0 hr 00 min 00 sec\n"), "{text}");
        let (status, text) = answer(&state, "/flagz", accept).await;
        assert!(status == 200 && text.starts_with("\nkubelet flagz\n"), "{text}");
        assert!(text.ends_with("\nv=2\n"), "{text}");
    }
    let object = |kind: &str| format!("application/json;v=v1beta1;g=config.k8s.io;as={kind}");
    let (_, text) = answer(&state, "/statusz", &object("Statusz")).await;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&status["kind"], &status["uptimeSeconds"]), (&json!("Statusz"), &json!(0)));
    assert_eq!(status["apiVersion"], "config.k8s.io/v1beta1");
    let (_, text) = answer(&state, "/flagz", &object("Flagz")).await;
    let flags: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(flags["flags"], json!({"v": "2"}));
    for accept in ["application/json", "application/xml", &object("Flagz"), "\u{e9}"] {
        assert_eq!(answer(&state, "/statusz", accept).await.0, 406, "{accept}");
    }
}
