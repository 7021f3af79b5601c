//! The server through a typed client: persistence, watches, conflicts, access, deletion.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod harness;

use futures::{StreamExt, TryStreamExt};
use harness::{
    NODE, config_map, eventually, pod, register_node, serve, serve_in, serve_with, set_running,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent,
    WatchParams,
};
use kube::{Client, Error, ResourceExt};
use serde_json::json;

fn maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "default")
}

fn code(error: &Error) -> u16 {
    match error {
        Error::Api(status) => status.code,
        other => panic!("not an API error: {other:?}"),
    }
}

#[tokio::test]
async fn objects_and_certificates_survive_a_restart() {
    let running = serve().await;
    let client = running.admin().await;
    let made =
        maps(&client).create(&PostParams::default(), &config_map("kept", "1")).await.unwrap();
    let ca = running.server.credentials.ca_pem.clone();
    let dir = running.stop().await;

    let running = serve_in(dir, |_| {}).await;
    assert_eq!(running.server.credentials.ca_pem, ca);
    let client = running.admin().await;
    let found = maps(&client).get("kept").await.unwrap();
    assert_eq!(found, made);
    let next = maps(&client).create(&PostParams::default(), &config_map("new", "1")).await.unwrap();
    let number = |map: &ConfigMap| map.resource_version().unwrap().parse::<u64>().unwrap();
    assert!(number(&next) > number(&made), "revisions never go back");
    running.stop().await;
}

#[tokio::test]
async fn a_watch_resumes_where_it_was_and_gets_410_when_that_is_forgotten() {
    let running = serve_with(|config| config.history = 20).await;
    let client = running.admin().await;
    let maps = maps(&client);
    let first = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let from = first.resource_version().unwrap();
    maps.create(&PostParams::default(), &config_map("b", "1")).await.unwrap();
    maps.delete("a", &DeleteParams::default()).await.unwrap();

    let params = WatchParams::default().timeout(2);
    let events: Vec<WatchEvent<ConfigMap>> =
        maps.watch(&params, &from).await.unwrap().try_collect().await.unwrap();
    let seen: Vec<String> = events
        .iter()
        .map(|event| match event {
            WatchEvent::Added(map) => format!("added {}", map.name_any()),
            WatchEvent::Modified(map) => format!("modified {}", map.name_any()),
            WatchEvent::Deleted(map) => format!("deleted {}", map.name_any()),
            WatchEvent::Bookmark(_) => "bookmark".into(),
            WatchEvent::Error(status) => format!("error {}", status.code),
        })
        .filter(|event| event != "bookmark")
        .collect();
    assert_eq!(seen, ["added b", "deleted a"]);

    for number in 0..30 {
        let patch = json!({"data": {"value": number.to_string()}});
        maps.patch("b", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
    let mut stream = maps.watch(&params, &from).await.unwrap().boxed();
    match stream.next().await.unwrap().unwrap() {
        WatchEvent::Error(status) => {
            assert_eq!(status.code, 410);
            assert!(status.message.contains("too old resource version"), "{}", status.message);
        }
        other => panic!("not an error: {other:?}"),
    }
    running.stop().await;
}

#[tokio::test]
async fn a_streaming_list_ends_its_first_part_with_a_bookmark() {
    let running = serve().await;
    let client = running.admin().await;
    maps(&client).create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let url = "/api/v1/namespaces/default/configmaps?watch=1&sendInitialEvents=true\
               &resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let text = client.request_text(http_request(url)).await.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.iter().any(|line| line.contains("\"ADDED\"") && line.contains("\"name\":\"a\"")));
    assert!(lines.last().unwrap().contains("k8s.io/initial-events-end"), "{text}");
    running.stop().await;
}

fn http_request(url: &str) -> hyper::Request<Vec<u8>> {
    hyper::Request::get(url).body(Vec::new()).unwrap()
}

#[tokio::test]
async fn of_two_updates_of_one_version_one_conflicts() {
    let running = serve().await;
    let maps = maps(&running.admin().await);
    let mut read = maps.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let mut other = read.clone();
    read.data.as_mut().unwrap().insert("value".into(), "2".into());
    maps.replace("a", &PostParams::default(), &read).await.unwrap();
    other.data.as_mut().unwrap().insert("value".into(), "3".into());
    let error = maps.replace("a", &PostParams::default(), &other).await.unwrap_err();
    assert_eq!(code(&error), 409);
    assert!(error.to_string().contains("the object has been modified"), "{error}");

    let wrong = Preconditions { uid: Some("nobody".into()), resource_version: None };
    let params = DeleteParams { preconditions: Some(wrong), ..DeleteParams::default() };
    assert_eq!(code(&maps.delete("a", &params).await.unwrap_err()), 409);
    running.stop().await;
}

#[tokio::test]
async fn writers_at_the_same_time_lose_nothing() {
    let running = serve().await;
    let client = running.admin().await;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let tasks = (0..40).map(|number| {
        let (services, maps) = (services.clone(), maps(&client));
        async move {
            let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
            let name = format!("s{number}");
            let service = json!({"metadata": {"name": name}, "spec": spec});
            let service = serde_json::from_value(service).unwrap();
            maps.create(&PostParams::default(), &config_map(&name, "x")).await.unwrap();
            services.create(&PostParams::default(), &service).await.unwrap()
        }
    });
    let made = futures::future::join_all(tasks).await;
    let mut addresses: Vec<String> =
        made.iter().map(|s| s.spec.as_ref().unwrap().cluster_ip.clone().unwrap()).collect();
    let mut ports: Vec<i32> = made
        .iter()
        .map(|s| s.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].node_port.unwrap())
        .collect();
    addresses.sort();
    addresses.dedup();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!((addresses.len(), ports.len()), (40, 40), "no address or port is given twice");
    assert_eq!(
        maps(&client).list(&ListParams::default().labels("!x")).await.unwrap().items.len(),
        41
    );
    running.stop().await;
}

#[tokio::test]
async fn pages_of_a_list_are_of_one_moment() {
    let running = serve().await;
    let maps = maps(&running.admin().await);
    for name in ["a", "b", "c"] {
        maps.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    let page = maps.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(page.items.len(), 2);
    let token = page.metadata.continue_.clone().unwrap();
    maps.create(&PostParams::default(), &config_map("d", "1")).await.unwrap();
    let rest = maps.list(&ListParams::default().limit(9).continue_token(&token)).await.unwrap();
    let names: Vec<String> = rest.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["c", "kube-root-ca.crt"], "what was made later is not in it");
    assert_eq!(rest.metadata.resource_version, page.metadata.resource_version);
    let bare = maps.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(bare.items.len(), 5);
    running.stop().await;
}

#[tokio::test]
async fn a_pod_is_bound_run_and_deleted_in_two_steps() {
    let running = serve().await;
    let (admin, agent) = (running.admin().await, running.agent().await);
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "default");
    let early = pods.create(&PostParams::default(), &pod("early")).await.unwrap();
    assert_eq!(early.metadata.generation, Some(1));
    eventually("the pod is refused", || async {
        let events: Api<Event> = Api::namespaced(admin.clone(), "default");
        let list = events.list(&ListParams::default().fields("reason=FailedScheduling")).await;
        list.unwrap().items.iter().any(|e| e.involved_object.name.as_deref() == Some("early"))
    })
    .await;
    register_node(&agent, 10250).await;
    eventually("the pod is bound", || async {
        pods.get("early").await.unwrap().spec.unwrap().node_name.as_deref() == Some(NODE)
    })
    .await;
    let node: Node = Api::all(admin.clone()).get(NODE).await.unwrap();
    assert_eq!(node.spec.unwrap().pod_cidr.as_deref(), Some("10.244.0.0/24"));
    set_running(&agent, "early", "10.244.0.9").await;

    let service = json!({"metadata": {"name": "early"}, "spec": {
        "selector": {"app": "early"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    let services: Api<Service> = Api::namespaced(admin.clone(), "default");
    services
        .create(&PostParams::default(), &serde_json::from_value(service).unwrap())
        .await
        .unwrap();
    let slices: Api<EndpointSlice> = Api::namespaced(admin.clone(), "default");
    let of_service = ListParams::default().labels("kubernetes.io/service-name=early");
    let endpoint = || async {
        let list = slices.list(&of_service).await.unwrap().items;
        list.first().and_then(|slice| slice.endpoints.as_ref()?.first().cloned())
    };
    eventually("the slice has the pod", || async {
        endpoint().await.is_some_and(|e| e.conditions.and_then(|c| c.ready) == Some(true))
    })
    .await;

    let agents: Api<Pod> = Api::namespaced(agent.clone(), "default");
    pods.delete("early", &DeleteParams::default()).await.unwrap();
    let marked = pods.get("early").await.unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    eventually("the endpoint is terminating", || async {
        endpoint().await.is_some_and(|e| e.conditions.and_then(|c| c.terminating) == Some(true))
    })
    .await;
    agents.delete("early", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(code(&pods.get("early").await.unwrap_err()), 404);
    services.delete("early", &DeleteParams::default()).await.unwrap();
    eventually("the slice and endpoints go with the service", || async {
        let endpoints: Api<Endpoints> = Api::namespaced(admin.clone(), "default");
        slices.list(&of_service).await.unwrap().items.is_empty()
            && endpoints.get_opt("early").await.unwrap().is_none()
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn a_node_may_touch_its_own_objects_and_no_others() {
    let running = serve().await;
    let (admin, agent) = (running.admin().await, running.agent().await);
    register_node(&agent, 10250).await;
    let leases: Api<Lease> = Api::namespaced(agent.clone(), "kube-node-lease");
    let lease = |name: &str| -> Lease {
        serde_json::from_value(
            json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}}),
        )
        .unwrap()
    };
    leases.create(&PostParams::default(), &lease(NODE)).await.unwrap();
    let other = leases.create(&PostParams::default(), &lease("other")).await.unwrap_err();
    assert_eq!(code(&other), 403);
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "default");
    let mut foreign = pod("foreign");
    foreign.spec.as_mut().unwrap().node_name = Some("other".into());
    pods.create(&PostParams::default(), &foreign).await.unwrap();
    let agents: Api<Pod> = Api::namespaced(agent.clone(), "default");
    let patch = Patch::Merge(json!({"status": {"phase": "Failed"}}));
    let refused = agents.patch_status("foreign", &PatchParams::default(), &patch).await;
    assert_eq!(code(&refused.unwrap_err()), 403);
    let secrets: Api<Secret> = Api::namespaced(agent.clone(), "default");
    // One at a time, as a pod names it.
    secrets.list(&ListParams::default().fields("metadata.name=one")).await.unwrap();
    let all = secrets.list(&ListParams::default()).await;
    assert_eq!(code(&all.unwrap_err()), 403);
    let made = maps(&agent).create(&PostParams::default(), &config_map("x", "1")).await;
    assert_eq!(code(&made.unwrap_err()), 403);
    running.stop().await;
}

#[tokio::test]
async fn finalizers_and_namespaces_hold_an_object_until_they_let_go() {
    let running = serve().await;
    let client = running.admin().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let team = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces.create(&PostParams::default(), &team).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "team");
    let mut held = config_map("held", "1");
    held.metadata.finalizers = Some(vec!["example.com/hold".into()]);
    maps.create(&PostParams::default(), &held).await.unwrap();
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    eventually("the object is marked", || async {
        maps.get("held").await.unwrap().metadata.deletion_timestamp.is_some()
    })
    .await;
    let refused = maps.create(&PostParams::default(), &config_map("late", "1")).await.unwrap_err();
    assert_eq!(code(&refused), 403);
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("held", &PatchParams::default(), &release).await.unwrap();
    eventually("the namespace is gone", || async {
        namespaces.get_opt("team").await.unwrap().is_none()
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn dry_runs_store_nothing_and_events_expire() {
    let running = serve_with(|config| config.event_ttl = std::time::Duration::from_secs(1)).await;
    let client = running.admin().await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let shown = maps(&client).create(&dry, &config_map("ghost", "1")).await.unwrap();
    assert!(shown.metadata.uid.is_some());
    assert!(maps(&client).get_opt("ghost").await.unwrap().is_none());

    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let event = serde_json::from_value(json!({"metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "x"}, "reason": "R"}));
    events.create(&PostParams::default(), &event.unwrap()).await.unwrap();
    let new: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(client.clone(), "default");
    assert_eq!(new.get("e").await.unwrap().regarding.unwrap().name.as_deref(), Some("x"));
    eventually("the event expires", || async { events.get_opt("e").await.unwrap().is_none() })
        .await;
    running.stop().await;
}

#[tokio::test]
async fn bindings_and_evictions_work_as_a_scheduler_and_a_drain_use_them() {
    let running = serve().await;
    let admin = running.admin().await;
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "default");
    let mut own = pod("own");
    own.spec.as_mut().unwrap().scheduler_name = Some("mine".into());
    pods.create(&PostParams::default(), &own).await.unwrap();
    let bind = |node: &str| {
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "own"},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        hyper::Request::post("/api/v1/namespaces/default/pods/own/binding")
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes())
            .unwrap()
    };
    admin.request_text(bind("n1")).await.unwrap();
    let again = admin.request_text(bind("n2")).await.unwrap_err();
    assert_eq!(code(&again), 409);
    assert_eq!(pods.get("own").await.unwrap().spec.unwrap().node_name.as_deref(), Some("n1"));
    pods.evict("own", &kube::api::EvictParams::default()).await.unwrap();
    assert!(pods.get("own").await.unwrap().metadata.deletion_timestamp.is_some());
    running.stop().await;
}

#[tokio::test]
async fn a_damaged_database_and_a_taken_port_are_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("objects.redb"), vec![7; 10_000]).unwrap();
    let mut config = berth_apiserver::Config::new(dir.path(), NODE);
    config.bind = ([127, 0, 0, 1], 0).into();
    let error = berth_apiserver::start(config.clone()).await.unwrap_err();
    let shown = std::error::Error::source(&error).unwrap().to_string();
    assert!(shown.contains("objects.redb") && shown.contains("damaged"), "{shown}");
    config.recovery = berth_apiserver::Recovery::Quarantine;
    let server = berth_apiserver::start(config.clone()).await.unwrap();
    config.bind = server.address;
    let error = berth_apiserver::start(config).await.unwrap_err();
    assert!(error.to_string().contains("listen on 127.0.0.1"), "{error}");
    server.stop().await;
}
