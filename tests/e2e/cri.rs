//! The CRI socket on a real node, asked by a gRPC client over the socket itself: beside an agent, and by
//! `berth cri` while none runs, which is when `kubeadm reset` ends what is left.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::task::{Context, Poll};

use berth_runtime::cri::Code;
use berth_runtime::cri::messages::*;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::client::Grpc;
use tower_service::Service;

use crate::node::{Node, berth, wait};

/// One connection to a socket.
pub(crate) struct Client {
    runtime: Runtime,
    sender: Sender,
}

#[derive(Clone)]
struct Sender(SendRequest<Body>);

impl Service<Request<Body>> for Sender {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.send_request(request).boxed()
    }
}

impl Client {
    /// Connects, once somebody listens.
    pub(crate) fn connect(socket: &Path) -> Self {
        let runtime = Runtime::new().unwrap();
        let connect = || runtime.block_on(UnixStream::connect(socket)).ok();
        let stream = wait("somebody to serve the socket", connect);
        let shaken = runtime.block_on(handshake(TokioExecutor::new(), TokioIo::new(stream)));
        let (sender, connection) = shaken.unwrap();
        runtime.spawn(connection);
        Self { runtime, sender: Sender(sender) }
    }

    fn ask<Q, A>(&self, method: &str, question: Q) -> Result<A, tonic::Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let service = match method.contains("Image") {
            true => "ImageService",
            false => "RuntimeService",
        };
        self.call(&format!("/runtime.v1.{service}/{method}"), question)
    }

    /// Calls a method, by its path.
    pub(crate) fn call<Q, A>(&self, path: &str, question: Q) -> Result<A, tonic::Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(path).unwrap();
        let mut client =
            Grpc::with_origin(self.sender.clone(), "http://localhost".parse().unwrap());
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        self.runtime.block_on(async {
            client.ready().await.unwrap();
            let answer = client.unary(tonic::Request::new(question), path, codec).await?;
            Ok(answer.into_inner())
        })
    }

    /// Who makes pods' cgroups.
    pub(crate) fn driver(&self) -> CgroupDriver {
        let RuntimeConfigResponse { linux } =
            self.ask("RuntimeConfig", RuntimeConfigRequest {}).unwrap();
        linux.unwrap().cgroup_driver()
    }

    /// What `kubeadm` asks before it joins a node: conditions by name.
    pub(crate) fn conditions(&self) -> Vec<(String, bool)> {
        assert_eq!(self.driver(), CgroupDriver::Cgroupfs);
        let answer: StatusResponse = self.ask("Status", StatusRequest::default()).unwrap();
        let [handler] = answer.runtime_handlers.try_into().unwrap();
        assert!(handler.name.is_empty() && handler.features.unwrap().user_namespaces);
        let conditions = answer.status.unwrap().conditions;
        conditions.into_iter().map(|one| (one.kind, one.status)).collect()
    }

    fn sandboxes(&self) -> Vec<PodSandbox> {
        let all: ListPodSandboxResponse =
            self.ask("ListPodSandbox", ListPodSandboxRequest::default()).unwrap();
        all.items
    }

    /// What `kubeadm reset` does to what is left; how many there were.
    pub(crate) fn end_all(&self) -> usize {
        let all = self.sandboxes();
        for PodSandbox { id, .. } in &all {
            let stop = StopPodSandboxRequest { pod_sandbox_id: id.clone() };
            let _: StopPodSandboxResponse = self.ask("StopPodSandbox", stop).unwrap();
            let remove = RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
            let _: RemovePodSandboxResponse = self.ask("RemovePodSandbox", remove).unwrap();
        }
        assert!(self.sandboxes().is_empty());
        all.len()
    }

    fn image(&self, reference: &str) -> Option<Image> {
        let image = Some(ImageSpec { image: reference.to_owned() });
        let question = ImageStatusRequest { image, verbose: false };
        self.ask::<_, ImageStatusResponse>("ImageStatus", question).unwrap().image
    }
}

/// `berth cri`, ended with the test.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(node: &Node) -> Self {
        let mut command = node.namespace().command(berth());
        command.arg("cri").args(node.dir_flags()).stdin(Stdio::null());
        command.stderr(File::create(node.path("cri.log")).unwrap());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where that fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const SLEEPER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: sleeper, labels: {app: s}}\nspec:\n  \
    terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: \
    'berth.local/busybox:1', imagePullPolicy: Never, command: [sleep, '100217']}\n";

fn socket(node: &Node) -> PathBuf {
    node.path("run/berth.sock")
}

/// How many processes run the pod's command, which no other test runs.
fn sleepers() -> usize {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line == b"sleep\x00100217\0").count()
}

#[test]
fn the_cri_tells_of_a_nodes_pods_and_images_and_ends_them() {
    let mut node = Node::start();
    node.apply(SLEEPER);
    let pod = node.wait_ready("sleeper");
    let mode = fs::metadata(socket(&node)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let client = Client::connect(&socket(&node));
    let version: VersionResponse = client.ask("Version", VersionRequest::default()).unwrap();
    assert_eq!(
        (version.runtime_name.as_str(), version.runtime_api_version.as_str()),
        ("berth", "v1")
    );
    let ready = [("RuntimeReady".to_owned(), true), ("NetworkReady".to_owned(), true)];
    assert_eq!(client.conditions(), ready);
    let refused = client.ask::<_, VersionResponse>("RunPodSandbox", VersionRequest::default());
    assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);

    // The same as the API says.
    let id = client.sandboxes()[0].id.clone();
    let question = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
    let status: PodSandboxStatusResponse = client.ask("PodSandboxStatus", question).unwrap();
    let sandbox = status.status.unwrap();
    assert_eq!(sandbox.state(), PodSandboxState::Ready);
    assert_eq!(pod["status"]["podIP"], sandbox.network.unwrap().ip.as_str());
    assert_eq!(pod["metadata"]["uid"], sandbox.metadata.unwrap().uid.as_str());
    let all: ListContainersResponse =
        client.ask("ListContainers", ListContainersRequest::default()).unwrap();
    let container = format!("berth://{}", all.containers[0].id);
    assert_eq!(pod["status"]["containerStatuses"][0]["containerID"], container.as_str());
    assert_eq!(all.containers[0].state(), ContainerState::Running);

    assert!(client.image("berth.local/nothing:1").is_none());
    let demo = client.image("berth.local/demo:1").unwrap();
    let image = Some(ImageSpec { image: demo.id });
    let _: RemoveImageResponse = client.ask("RemoveImage", RemoveImageRequest { image }).unwrap();
    assert!(client.image("berth.local/demo:1").is_none());
    let usage: ImageFsInfoResponse = client.ask("ImageFsInfo", ImageFsInfoRequest {}).unwrap();
    assert!(usage.image_filesystems[0].used_bytes.as_ref().unwrap().value > 0);

    // A sandbox that somebody ends under the kubelet's hands is made anew.
    let stop = StopPodSandboxRequest { pod_sandbox_id: id.clone() };
    let _: StopPodSandboxResponse = client.ask("StopPodSandbox", stop).unwrap();
    node.wait_for("the pod to run in another sandbox", || {
        let others = client.sandboxes();
        let another =
            others.iter().any(|one| one.id != id && one.state() == PodSandboxState::Ready);
        (another && sleepers() == 1).then_some(())
    });

    // Without an agent: what it left is told, and ended truly.
    drop(client);
    node.kill_agent();
    let server = Server::start(&node);
    let client = Client::connect(&socket(&node));
    assert_eq!(client.conditions(), ready);
    assert!(client.end_all() > 0);
    assert_eq!(sleepers(), 0);
    let links = || node.namespace().run("ip", &["-br", "link", "show", "master", "berth0"]);
    wait("the pod's link to go", || links().trim().is_empty().then_some(()));
    drop((client, server));
    node.finish();
}
