//! The whole proxy against an API server that answers lists and watches: from an object's change
//! to a client's packet. Needs root.

#![allow(clippy::unwrap_used)]

mod net;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::response::IntoResponse;
use axum::routing::get;
use berth_proxy::{Config, NodePortAddresses, ServiceRoute};
use futures::StreamExt;
use net::{Net, Seen, tcp};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

/// Serves one Service and one slice, and watch events on demand.
struct Api {
    events: broadcast::Sender<String>,
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "uid": "1", "resourceVersion": "5"},
        "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]
        },
        // As an API server sends it whose clients did not say when it changed.
        "status": {"conditions": [{
            "type": "Told", "status": "True", "reason": "E2E", "message": "", "lastTransitionTime": null
        }]}
    })
}

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|a| json!({"addresses": [a], "nodeName": "node", "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1", "namespace": "default", "uid": "2", "resourceVersion": "6",
            "labels": {"kubernetes.io/service-name": "web"}
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints
    })
}

fn list(kind: &str, version: &str, items: Value) -> axum::response::Response {
    axum::Json(json!({
        "kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "10"}, "items": items
    }))
    .into_response()
}

/// A watch that says nothing until an event is published.
fn watch(api: &Api) -> axum::response::Response {
    let receiver = api.events.subscribe();
    let lines = futures::stream::unfold(receiver, |mut receiver| async {
        let line = receiver.recv().await.ok()?;
        Some((Ok::<_, std::io::Error>(line), receiver))
    });
    axum::body::Body::from_stream(lines.boxed()).into_response()
}

type Parameters = Query<HashMap<String, String>>;

async fn services(query: Parameters) -> axum::response::Response {
    if query.contains_key("watch") {
        let silence = futures::stream::pending::<Result<String, std::io::Error>>();
        return axum::body::Body::from_stream(silence).into_response();
    }
    list("ServiceList", "v1", json!([service()]))
}

async fn slices(State(api): State<Arc<Api>>, query: Parameters) -> axum::response::Response {
    if query.contains_key("watch") {
        return watch(&api);
    }
    let items = json!([slice(&["10.244.0.2", "127.0.0.1"])]);
    list("EndpointSliceList", "discovery.k8s.io/v1", items)
}

async fn serve(api: Arc<Api>) -> SocketAddr {
    let app = axum::Router::new()
        .route("/api/v1/services", get(services))
        .route("/apis/discovery.k8s.io/v1/endpointslices", get(slices))
        .with_state(api);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn who_answers(net: &Net, to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    match net.client.run(move || tcp(to)) {
        Seen::Answer { endpoint, .. } => endpoint,
        other => format!("{other:?}"),
    }
}

fn eventually(what: &str, check: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_an_object_changes_where_packets_go() {
    let net = Net::new();
    let api = Arc::new(Api { events: broadcast::channel(8).0 });
    let url = format!("http://{}", serve(api.clone()).await);
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    let netns = PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), net.node.tid));
    let (synced, mut is_synced) = tokio::sync::watch::channel(false);
    let config = Config {
        node_port_addresses: NodePortAddresses::Networks(vec!["192.0.2.0/24".parse().unwrap()]),
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        service_route: ServiceRoute::Device("to-ep1".into()),
        netns: Some(netns.clone()),
        synced: Some(synced),
        ..Config::new("node")
    };
    net.node.exec("ip route del default", "");
    let shutdown = CancellationToken::new();
    let proxy = tokio::spawn(berth_proxy::run(client, config, shutdown.clone()));
    is_synced.wait_for(|synced| *synced).await.unwrap();

    assert_eq!(who_answers(&net, "10.96.0.10:80"), "ep1");
    let routes = net.node.exec("ip route show 10.96.0.0/12", "");
    assert!(routes.contains("dev to-ep1"), "{routes}");
    let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
    assert!(matches!(net.node.run(move || tcp(to)), Seen::Answer { .. }));
    assert_eq!(who_answers(&net, "192.0.2.1:30080"), "ep1");
    eventually("the watch", || api.events.receiver_count() > 0);
    let event = json!({"type": "MODIFIED", "object": slice(&["10.244.0.3"])});
    api.events.send(format!("{event}\n")).unwrap();
    eventually("the change", || who_answers(&net, "10.96.0.10:80") == "ep2");
    let event = json!({"type": "DELETED", "object": slice(&[])});
    api.events.send(format!("{event}\n")).unwrap();
    eventually("the deletion", || who_answers(&net, "192.0.2.1:30080") == "Refused");

    shutdown.cancel();
    proxy.await.unwrap().unwrap();
    assert_eq!(who_answers(&net, "10.96.0.10:80"), "Refused", "rules outlive the proxy");
    assert!(net.node.exec("nft list tables", "").contains("berth"));
    let remove = move || berth_proxy::teardown(Some(&netns)).unwrap();
    tokio::task::spawn_blocking(remove).await.unwrap();
    assert_eq!(net.node.exec("nft list tables", ""), "");
}

#[tokio::test]
async fn a_namespace_that_does_not_exist_is_an_error() {
    let url = "http://127.0.0.1:1".parse().unwrap();
    let client = kube::Client::try_from(kube::Config::new(url)).unwrap();
    let config = Config { netns: Some("/does/not/exist".into()), ..Config::new("node") };
    let error = berth_proxy::run(client, config, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, berth_proxy::Error::Namespace { .. }), "{error}");
}
