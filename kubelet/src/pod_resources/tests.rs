//! The calls as a client makes them, without a socket; the socket's file.

use berth_runtime::grpc::Code;
use k8s_openapi::api::core::v1::PodStatus;
use prost::Message;
use serde_json::{Value, json};
use tonic::codegen::http::uri::PathAndQuery;

use super::*;
use crate::meters::tests::counted;

struct Scene {
    service: Service<Lister>,
    shelf: Shelf,
    meters: Meters,
}

impl Scene {
    fn new() -> Self {
        let (shelf, meters) = (Shelf::default(), Meters::default());
        let service = Service::new(Lister::new(shelf.clone(), meters.clone()));
        Self { service, shelf, meters }
    }

    fn pod(&self, name: &str, phase: &str) {
        let container = |name: &str| json!({"name": name, "image": "i"});
        let pod = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {
                "containers": [container("main"), container("other")],
                "initContainers": [
                    container("first"),
                    {"name": "sidecar", "image": "i", "restartPolicy": "Always"},
                ],
                "ephemeralContainers": [container("debugger")],
            },
        });
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).unwrap());
        let status = PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() };
        self.shelf.put(&pod, &status);
    }

    async fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut client = tonic::client::Grpc::new(self.service.clone());
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        client.unary(tonic::Request::new(question), path, codec).await.map(|a| a.into_inner())
    }

    async fn list(&self, path: &'static str) -> Value {
        let answer: ListPodResourcesResponse =
            self.call(path, ListPodResourcesRequest {}).await.unwrap();
        answer.pod_resources.iter().map(told).collect()
    }

    async fn get(&self, pod_namespace: &str, pod_name: &str) -> Result<Value, Status> {
        let (pod_name, pod_namespace) = (pod_name.to_owned(), pod_namespace.to_owned());
        let request = GetPodResourcesRequest { pod_name, pod_namespace };
        let answer: GetPodResourcesResponse = self.call(GET, request).await?;
        Ok(told(&answer.pod_resources.unwrap()))
    }
}

const LIST: &str = "/v1.PodResourcesLister/List";
const GET: &str = "/v1.PodResourcesLister/Get";

fn told(pod: &PodResources) -> Value {
    let containers: Vec<_> = pod.containers.iter().map(|one| one.name.as_str()).collect();
    json!([pod.namespace, pod.name, containers])
}

#[tokio::test]
async fn pods_that_have_not_ended_are_listed_with_sidecars_and_main_containers() {
    let scene = Scene::new();
    assert_eq!(scene.list(LIST).await, json!([]));
    for (name, phase) in [("a", "Running"), ("b", "Succeeded"), ("c", "Pending"), ("d", "Failed")] {
        scene.pod(name, phase);
    }
    let containers = json!(["sidecar", "main", "other"]);
    assert_eq!(scene.list(LIST).await, json!([["ns", "a", containers], ["ns", "c", containers]]));
    let first = scene.list("/v1alpha1.PodResourcesLister/List").await;
    let names: Vec<_> = first.as_array().unwrap().iter().map(|pod| pod[1].clone()).collect();
    assert_eq!(names, ["a", "b", "c", "d"], "the first version told of all");
    assert_eq!(first[0][2], json!(["main", "other"]));
}

#[tokio::test]
async fn one_pod_is_told_by_its_name_or_said_to_be_unknown() {
    let scene = Scene::new();
    scene.pod("a", "Succeeded");
    let told = json!(["ns", "a", ["sidecar", "main", "other"]]);
    assert_eq!(scene.get("ns", "a").await.unwrap(), told, "while it is known");
    let error = scene.get("other", "a").await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown);
    assert_eq!(error.message(), "pod a in namespace other not found");
    let counts = [&meters::GETS, &meters::FAILED_GETS].map(|meter| counted(&scene.meters, meter));
    assert_eq!(counts, [2, 1].map(|count| [("v1".to_owned(), count)].into()));
}

#[tokio::test]
async fn nothing_can_be_assigned_without_policies_and_plugins() {
    let scene = Scene::new();
    let path = "/v1.PodResourcesLister/GetAllocatableResources";
    let answer: AllocatableResourcesResponse =
        scene.call(path, AllocatableResourcesRequest {}).await.unwrap();
    assert!(answer.encode_to_vec().is_empty(), "no device, no processor, no memory");
    assert_eq!(counted(&scene.meters, &meters::ALLOCATABLES)["v1"], 1);
}

#[tokio::test(start_paused = true)]
async fn who_asks_too_often_is_refused_for_a_while() {
    let scene = Scene::new();
    for _ in 0..AT_ONCE {
        scene.list(LIST).await;
    }
    for path in [LIST, "/v1alpha1.PodResourcesLister/List"] {
        let refused: Result<ListPodResourcesResponse, _> =
            scene.call(path, ListPodResourcesRequest {}).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.message(), "rejected by rate limit");
    }
    tokio::time::advance(Duration::from_millis(10)).await;
    scene.list(LIST).await;
    assert_eq!(counted(&scene.meters, &meters::POD_RESOURCES)["v1"], u64::from(AT_ONCE) + 1);
}

#[tokio::test]
async fn what_is_unknown_is_said_so_by_name_and_costs_nobody_a_call() {
    let scene = Scene::new();
    for (path, text) in [
        ("/v1.PodResourcesLister/Watch", "unknown method Watch for service v1.PodResourcesLister"),
        (
            "/v1alpha1.PodResourcesLister/Get",
            "unknown method Get for service v1alpha1.PodResourcesLister",
        ),
        ("/v2.PodResourcesLister/List", "unknown service v2.PodResourcesLister"),
        ("/", "unknown service "),
    ] {
        for _ in 0..AT_ONCE {
            let refused: Result<ListPodResourcesResponse, _> =
                scene.call(path, ListPodResourcesRequest {}).await;
            let refused = refused.unwrap_err();
            assert_eq!((refused.code(), refused.message()), (Code::Unimplemented, text));
        }
    }
    scene.list(LIST).await;
}

#[tokio::test]
async fn a_message_that_is_too_long_is_not_read() {
    let scene = Scene::new();
    let refused = scene.get("ns", &"x".repeat(CALL.request_bytes)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
}

#[tokio::test]
async fn the_socket_is_roots_and_takes_the_place_of_a_stale_one() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("pod-resources/kubelet.sock");
    let first = Socket::bind(root.path()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o750);
    // As an agent that was killed leaves it.
    std::mem::forget(first);
    let second = Socket::bind(root.path()).unwrap();
    let stop = CancellationToken::new();
    let lister = Lister::new(Shelf::default(), Meters::default());
    let serving = tokio::spawn(second.serve(lister, stop.clone()));
    tokio::net::UnixStream::connect(&path).await.unwrap();
    stop.cancel();
    serving.await.unwrap();
    assert!(!path.exists(), "removed when the agent ends");
}
