//! The calls through gRPC's framing, without a socket, over sandboxes that are only told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use tonic::codegen::http::uri::PathAndQuery;

use super::calls::Calls;
use super::messages::*;
use super::server::services;
use super::*;
use crate::grpc::Service;
use crate::interface::{
    Checkpoint, ContainerId, ContainerState as State, Image, NamespaceMode as Mode, PidMode,
    PodIdentity, Resources, SandboxConfig, SandboxState,
};

struct Told {
    sandboxes: Vec<SandboxStatus>,
    /// What was ended, and leave to end it.
    ended: Mutex<Vec<SandboxId>>,
    may_end: Semaphore,
    logins: Mutex<Vec<Option<Credentials>>>,
}

#[async_trait]
impl Backend for Told {
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, String> {
        Ok(self.sandboxes.clone())
    }
    async fn stop_sandbox(&self, sandbox: SandboxId) -> Result<(), String> {
        let _leave = self.may_end.acquire().await.unwrap();
        self.ended.lock().unwrap().push(sandbox);
        Ok(())
    }
    async fn remove_sandbox(&self, _: SandboxId) -> Result<(), String> {
        Err("the disk is read-only".to_owned())
    }
    async fn checkpoint(&self, container: ContainerId, to: Checkpoint) -> Result<(), String> {
        Err(format!("{container} to {:?} in {:?}", to.location, to.timeout))
    }
    async fn images(&self) -> Result<Vec<Image>, String> {
        Ok(Vec::new())
    }
    async fn image(&self, _: String) -> Result<Option<Image>, String> {
        Ok(None)
    }
    async fn pull(&self, reference: String, login: Option<Credentials>) -> Result<Image, String> {
        self.logins.lock().unwrap().push(login);
        Ok(Image {
            id: format!("sha256:{}", "0".repeat(64)).try_into().unwrap(),
            tags: vec![reference],
            digests: Vec::new(),
            size_bytes: 1,
            user: "65534:0".to_owned(),
            pinned: false,
        })
    }
    async fn remove_image(&self, _: String) -> Result<(), String> {
        Ok(())
    }
    async fn network(&self) -> Result<(), String> {
        Err("the node has no pod CIDR yet".to_owned())
    }
    async fn cgroup_driver(&self) -> CgroupDriver {
        CgroupDriver::Systemd
    }
    async fn user_namespaces(&self) -> Result<bool, String> {
        Ok(true)
    }
}

fn sandbox(id: &str, state: SandboxState) -> SandboxStatus {
    let config = SandboxConfig {
        pod: PodIdentity { namespace: "ns".into(), name: "pod".into(), uid: "u-1".into() },
        attempt: 2,
        hostname: "pod".into(),
        log_directory: "/var/log/pods/ns_pod_u-1".into(),
        cgroup_path: "kubepods/podu-1".into(),
        resources: Resources::default(),
        network: Mode::Pod,
        ipc: Mode::Pod,
        pid: PidMode::Container,
        users: Mode::Host,
        sysctls: BTreeMap::new(),
        port_mappings: Vec::new(),
        labels: BTreeMap::from([("tier".to_owned(), id[..1].to_owned())]),
        runtime_handler: "fast".to_owned(),
    };
    SandboxStatus {
        id: format!("{id:0<32}").try_into().unwrap(),
        config,
        state,
        created_at: 7,
        ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        containers: Vec::new(),
    }
}

struct Scene {
    told: Arc<Told>,
    services: Service<Calls>,
}

impl Scene {
    fn new() -> Self {
        let told = Arc::new(Told {
            sandboxes: vec![
                sandbox("aa", SandboxState::Ready),
                sandbox("ab", SandboxState::NotReady),
                sandbox("b", SandboxState::Ready),
            ],
            ended: Mutex::default(),
            may_end: Semaphore::new(1),
            logins: Mutex::default(),
        });
        let about = About {
            version: "1",
            images: "/nowhere".into(),
            layers: "/nowhere".into(),
            handlers: vec!["fast".to_owned()],
        };
        let services = services(told.clone(), about);
        Self { told, services }
    }

    async fn call<Q, A>(&self, path: &'static str, question: Q) -> Result<A, tonic::Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut client = tonic::client::Grpc::new(self.services.clone());
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        client.unary(tonic::Request::new(question), path, codec).await.map(|a| a.into_inner())
    }

    async fn list(&self, filter: PodSandboxFilter) -> Vec<String> {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let answer: ListPodSandboxResponse =
            self.call("/runtime.v1.RuntimeService/ListPodSandbox", request).await.unwrap();
        let short = |id: String| id.trim_end_matches('0').to_owned();
        answer.items.into_iter().map(|item| short(item.id)).collect()
    }

    async fn stop(&self, id: &str) -> Result<(), Code> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let answer: Result<StopPodSandboxResponse, _> =
            self.call("/runtime.v1.RuntimeService/StopPodSandbox", request).await;
        answer.map(drop).map_err(|status| status.code())
    }
}

#[tokio::test]
async fn what_is_not_served_says_so_by_name() {
    let scene = Scene::new();
    let refused = scene
        .call::<_, VersionResponse>(
            "/runtime.v1.RuntimeService/RunPodSandbox",
            VersionRequest::default(),
        )
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("RuntimeService/RunPodSandbox"), "{refused}");
}

#[tokio::test]
async fn sandboxes_are_listed_by_state_label_and_the_start_of_their_id() {
    let scene = Scene::new();
    let any = PodSandboxFilter::default;
    assert_eq!(scene.list(any()).await, ["aa", "ab", "b"]);
    let state = Some(PodSandboxStateValue { state: PodSandboxState::NotReady.into() });
    assert_eq!(scene.list(PodSandboxFilter { state, ..any() }).await, ["ab"]);
    let label_selector = BTreeMap::from([("tier".to_owned(), "b".to_owned())]);
    assert_eq!(scene.list(PodSandboxFilter { label_selector, ..any() }).await, ["b"]);
    assert_eq!(scene.list(PodSandboxFilter { id: "a".to_owned(), ..any() }).await, ["aa", "ab"]);

    let request = PodSandboxStatusRequest { pod_sandbox_id: "b".to_owned(), verbose: true };
    let answer: PodSandboxStatusResponse =
        scene.call("/runtime.v1.RuntimeService/PodSandboxStatus", request).await.unwrap();
    let status = answer.status.unwrap();
    let network = status.network.unwrap();
    assert_eq!((network.ip.as_str(), network.additional_ips.len()), ("10.0.0.1", 1));
    assert_eq!((status.metadata.unwrap().attempt, status.runtime_handler.as_str()), (2, "fast"));
    assert!(answer.info["info"].contains("\"uid\":\"u-1\""), "{:?}", answer.info);
}

#[tokio::test]
async fn ending_what_is_gone_succeeds_and_what_is_not_clear_is_refused() {
    let scene = Scene::new();
    assert_eq!(scene.stop("cc").await, Ok(()));
    assert_eq!(scene.stop("a").await, Err(Code::InvalidArgument), "two begin so");
    assert_eq!(scene.stop("").await, Err(Code::InvalidArgument));
    assert!(scene.told.ended.lock().unwrap().is_empty());
    assert_eq!(scene.stop("b").await, Ok(()));
    assert_eq!(*scene.told.ended.lock().unwrap(), [scene.told.sandboxes[2].id.clone()]);
    let request = RemovePodSandboxRequest { pod_sandbox_id: "b".to_owned() };
    let failed = scene
        .call::<_, RemovePodSandboxResponse>("/runtime.v1.RuntimeService/RemovePodSandbox", request)
        .await
        .unwrap_err();
    assert_eq!(failed.message(), "the disk is read-only");
}

#[tokio::test]
async fn a_call_that_has_begun_goes_on_when_its_client_leaves() {
    let scene = Scene::new();
    let held = scene.told.may_end.acquire().await.unwrap();
    let mut asking = Box::pin(scene.stop("b"));
    let early = futures::poll!(&mut asking);
    assert!(early.is_pending());
    tokio::task::yield_now().await;
    drop(asking);
    drop(held);
    while scene.told.ended.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_message_that_is_too_long_or_none_is_refused() {
    let scene = Scene::new();
    let long = StopPodSandboxRequest { pod_sandbox_id: "b".repeat(2 << 20) };
    let path = "/runtime.v1.RuntimeService/StopPodSandbox";
    let refused = scene.call::<_, StopPodSandboxResponse>(path, long).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    // Field 1 as a number, where a string is meant.
    let other = Int64Value { value: 1 };
    let refused = scene.call::<_, StopPodSandboxResponse>(path, other).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused}");
}

#[tokio::test]
async fn the_status_tells_what_is_ready_the_cgroup_driver_and_what_handlers_can() {
    let scene = Scene::new();
    let request = StatusRequest { verbose: true };
    let answer: StatusResponse =
        scene.call("/runtime.v1.RuntimeService/Status", request).await.unwrap();
    let conditions = answer.status.unwrap().conditions;
    let seen: Vec<_> = conditions.iter().map(|c| (c.kind.as_str(), c.status)).collect();
    assert_eq!(seen, [("RuntimeReady", true), ("NetworkReady", false)]);
    assert_eq!(conditions[1].message, "the node has no pod CIDR yet");
    assert!(answer.info["config"].contains("\"cgroupDriver\":\"systemd\""), "{:?}", answer.info);
    let features =
        RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true };
    let handlers =
        ["", "fast"].map(|name| RuntimeHandler { name: name.to_owned(), features: Some(features) });
    assert_eq!(answer.runtime_handlers, handlers);
    assert!(answer.features.unwrap().supplemental_groups_policy);
    let path = "/runtime.v1.RuntimeService/RuntimeConfig";
    let answer: RuntimeConfigResponse = scene.call(path, RuntimeConfigRequest {}).await.unwrap();
    assert_eq!(answer.linux.unwrap().cgroup_driver(), CgroupDriver::Systemd);
}

#[tokio::test]
async fn user_and_password_are_taken_both_ways_and_tokens_are_refused() {
    let scene = Scene::new();
    let pull = |auth: AuthConfig| {
        let image = Some(ImageSpec { image: "registry/x:1".to_owned() });
        let request = PullImageRequest { image, auth: Some(auth) };
        scene.call::<_, PullImageResponse>("/runtime.v1.ImageService/PullImage", request)
    };
    let plain = AuthConfig { username: "u".into(), password: "p".into(), ..AuthConfig::default() };
    assert_eq!(format!("{plain:?}"), "AuthConfig(redacted)");
    pull(plain).await.unwrap();
    pull(AuthConfig { auth: "dTpw".into(), ..AuthConfig::default() }).await.unwrap();
    pull(AuthConfig::default()).await.unwrap();
    let basic = Some(Credentials::Basic { username: "u".into(), password: "p".into() });
    assert_eq!(*scene.told.logins.lock().unwrap(), [basic.clone(), basic, None]);
    for auth in [
        AuthConfig { identity_token: "t".into(), ..AuthConfig::default() },
        AuthConfig { registry_token: "t".into(), ..AuthConfig::default() },
        AuthConfig { auth: "dQ==".into(), ..AuthConfig::default() },
    ] {
        assert_eq!(pull(auth).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[test]
fn an_exited_container_says_why() {
    let exited = |exit_code, oom_killed| State::Exited {
        started_at: 1,
        finished_at: 2,
        exit_code,
        oom_killed,
        message: String::new(),
    };
    for (state, reason) in [
        (exited(0, false), "Completed"),
        (exited(3, false), "Error"),
        (exited(137, true), "OOMKilled"),
    ] {
        assert_eq!(view::reason(&state), reason);
    }
}
