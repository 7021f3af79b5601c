//! Pods that are given other resources while they run.

use serde_json::{Value, json};

use super::scene::{Scene, container, sidecar};
use super::{Node, pod};

/// Requests and limits of processor (thousandths) and memory (MiB).
fn sized(cpu: u32, memory: u32) -> Value {
    let amounts = json!({"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")});
    json!({"requests": amounts, "limits": amounts})
}

fn with(name: &str, resources: Value, policies: Value) -> Value {
    container(name, json!({"resources": resources, "resizePolicy": policies}))
}

fn restart_for(resource: &str) -> Value {
    json!([{"resourceName": resource, "restartPolicy": "RestartContainer"}])
}

impl Scene {
    async fn resize(&mut self, index: usize, resources: Value) {
        self.pod["spec"]["containers"][index]["resources"] = resources;
        self.tell().await;
        self.pass(0.3).await;
    }

    fn resizes(&self) -> Vec<String> {
        let history = self.history();
        history.into_iter().filter(|what| what.starts_with("resize")).collect()
    }
}

fn reasons(node: &mut Node) -> Vec<String> {
    let about = |reason: &String| reason.starts_with("Resize");
    node.reasons().into_iter().filter(about).collect()
}

#[tokio::test(start_paused = true)]
async fn limits_change_while_containers_run_and_the_pod_is_never_the_tightest() {
    let apps = ["a", "b", "c"].map(|name| with(name, sized(20, 35), json!([])));
    let mut scene = Scene::new("Always", Vec::new(), apps.to_vec()).start().await;
    let before = scene.of("a")["containerID"].clone();
    scene.pod["spec"]["containers"][1]["resources"] = sized(10, 30);
    scene.resize(0, sized(30, 40)).await;
    let mib = |count: u64| Some(count << 20);
    let said = |name: &str, cpu: u64, memory: Option<u64>| {
        format!("resize {name} {:?} {memory:?}", Some(cpu))
    };
    assert_eq!(
        scene.resizes(),
        [
            said("the pod", 6000, mib(105)),
            said("b", 1000, mib(30)),
            said("a", 3000, mib(40)),
            said("the pod", 6000, mib(105)),
        ]
    );
    assert_eq!(scene.of("a")["containerID"], before);
    assert_eq!(scene.of("a")["resources"], sized(30, 40));
    assert_eq!(scene.of("a")["allocatedResources"], sized(30, 40)["requests"]);
    assert_eq!(scene.of("b")["resources"], sized(10, 30));
    assert_eq!(scene.restarts("a"), 0);
    assert_eq!(scene.condition("PodResizeInProgress"), Value::Null);
    assert_eq!(scene.status()["observedGeneration"], scene.pod["metadata"]["generation"]);
    assert_eq!(reasons(&mut scene.node), ["ResizeStarted", "ResizeCompleted"]);
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_a_whole_pod_change_while_it_runs() {
    let app = container("c", json!({}));
    let mut scene = Scene::new("Always", Vec::new(), vec![app]);
    scene.pod["spec"]["resources"] = sized(100, 64);
    let mut scene = scene.start().await;
    let before = scene.of("c")["containerID"].clone();
    scene.pod["spec"]["resources"] = sized(200, 128);
    scene.tell().await;
    scene.pass(0.3).await;
    let pod = format!("resize the pod {:?} {:?}", Some(20_000), Some(128_u64 << 20));
    assert!(scene.resizes().contains(&pod), "{:?}", scene.resizes());
    assert_eq!((scene.of("c")["containerID"].clone(), scene.restarts("c")), (before, 0));
    let status = scene.status();
    assert_eq!(status["resources"], sized(200, 128));
    assert_eq!(status["allocatedResources"], sized(200, 128)["requests"]);
    assert_eq!(scene.condition("PodResizeInProgress"), Value::Null);
    assert_eq!(reasons(&mut scene.node), ["ResizeStarted", "ResizeCompleted"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_policy_says_so_is_restarted_whatever_the_pods_policy() {
    let app = with("c", sized(20, 35), restart_for("memory"));
    let mut scene = Scene::new("OnFailure", Vec::new(), vec![app]).start().await;
    scene.node.runtime.state().stop_codes.insert("c".to_owned(), 0);
    scene.resize(0, sized(30, 35)).await;
    assert_eq!(scene.restarts("c"), 0, "for the processor it is not");
    scene.resize(0, sized(30, 40)).await;
    scene.pass(1.0).await;
    assert_eq!(scene.restarts("c"), 1);
    assert_eq!(scene.of("c")["resources"], sized(30, 40));
    assert_eq!(scene.running(), ["c"]);
    let messages = scene.node.messages();
    let why = "Container c resize requires restart";
    assert!(messages.iter().any(|message| message == why), "{messages:?}");
}

#[tokio::test(start_paused = true)]
async fn sidecars_are_resized_and_init_containers_that_run_are_not() {
    let side = sidecar("s", json!({"resources": sized(20, 35)}));
    let init = container("i", json!({"resources": sized(20, 35)}));
    let app = container("c", json!({"resources": sized(20, 35)}));
    let mut scene = Scene::new("Always", vec![side, init], vec![app]).start().await;
    assert_eq!(scene.running(), ["i", "s"]);
    for index in 0..2 {
        scene.pod["spec"]["initContainers"][index]["resources"] = sized(30, 40);
    }
    scene.resize(0, sized(30, 40)).await;
    let resized = scene.resizes();
    assert!(resized.iter().any(|what| what.starts_with("resize s ")), "{resized:?}");
    assert!(!resized.iter().any(|what| what.starts_with("resize i ")), "{resized:?}");
    assert_eq!(scene.condition("PodResizeInProgress"), Value::Null);
    scene.exit("i", 0).await;
    scene.pass(0.5).await;
    assert_eq!(scene.of("c")["resources"], sized(30, 40));
    assert_eq!(scene.node.runtime.state().sandboxes[0].config.resources.cpu_quota_us, Some(6000));
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_is_not_taken_away_and_the_status_says_why() {
    let app = with("c", sized(20, 35), json!([]));
    let mut scene = Scene::new("Always", Vec::new(), vec![app]).start().await;
    scene.node.runtime.state().memory_in_use.insert("c".to_owned(), 20 << 20);
    scene.resize(0, sized(20, 10)).await;
    let condition = scene.condition("PodResizeInProgress");
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Error")));
    let message = condition["message"].as_str().unwrap();
    assert!(message.starts_with("cannot decrease memory limits"), "{message}");
    assert_eq!(scene.of("c")["resources"], sized(20, 35));
    assert_eq!(scene.of("c")["allocatedResources"], sized(20, 10)["requests"]);
    scene.resize(0, sized(20, 35)).await;
    assert_eq!(scene.condition("PodResizeInProgress"), Value::Null);
    // Or the memory is given back.
    scene.resize(0, sized(20, 10)).await;
    scene.node.runtime.state().memory_in_use.clear();
    scene.pass(60.0).await;
    assert_eq!(scene.of("c")["resources"], sized(20, 10));
    let told = reasons(&mut scene.node);
    let expected = ["Started", "Error", "Started", "Completed", "Started", "Error", "Completed"];
    assert_eq!(told, expected.map(|what| format!("Resize{what}")));
}

#[tokio::test(start_paused = true)]
async fn a_resize_waits_for_room_and_gets_it_when_another_pod_goes() {
    let mut node = Node::new();
    let make = |name: &str, uid: &str, cpu: &str| {
        let mut pod = pod(name, uid, "Always");
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}});
        pod
    };
    node.apply(make("p", "u1", "1")).await;
    node.apply(make("q", "u2", "2")).await;
    node.pass(super::SECOND).await;
    let condition = |node: &Node, type_: &str| {
        let conditions = node.status("p").conditions.unwrap();
        let found = conditions.into_iter().find(|c| c.type_ == type_);
        found.map(|c| (c.reason.unwrap_or_default(), c.observed_generation))
    };
    let grown = |cpu: &str, generation: i64| {
        let mut pod = make("p", "u1", cpu);
        pod["metadata"]["generation"] = json!(generation);
        pod
    };
    node.apply(grown("9", 2)).await;
    node.pass(super::SECOND).await;
    assert_eq!(condition(&node, "PodResizePending"), Some(("Infeasible".to_owned(), Some(2))));
    node.apply(grown("3", 3)).await;
    node.pass(super::SECOND).await;
    assert_eq!(condition(&node, "PodResizePending"), Some(("Deferred".to_owned(), Some(3))));
    let allocated = node.status("p").container_statuses.unwrap()[0].allocated_resources.clone();
    assert_eq!(allocated.unwrap()["cpu"].0, "1");
    // It outlives the agent.
    node.kill_agent().await;
    node.start_agent();
    node.apply(grown("3", 3)).await;
    node.apply(make("q", "u2", "2")).await;
    node.pass(super::SECOND).await;
    assert_eq!(condition(&node, "PodResizePending"), Some(("Deferred".to_owned(), Some(3))));
    assert_eq!(reasons(&mut node), Vec::<String>::new(), "nothing is told twice");
    node.apply(super::deleted(make("q", "u2", "2"), 1)).await;
    node.pass(super::SECOND * 3).await;
    assert_eq!(condition(&node, "PodResizePending"), None);
    let allocated = node.status("p").container_statuses.unwrap()[0].allocated_resources.clone();
    assert_eq!(allocated.unwrap()["cpu"].0, "3");
    assert_eq!(reasons(&mut node), ["ResizeStarted", "ResizeCompleted"]);
    let dropped = node.api.statuses("p").into_iter().any(|status| {
        let gone = json!({"$patch": "delete", "type": "PodResizePending"});
        status["conditions"].as_array().unwrap().contains(&gone)
    });
    assert!(dropped, "the server is told that the condition is gone");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_in_the_middle_goes_on_where_it_was() {
    let app = with("c", sized(20, 35), json!([]));
    let mut scene = Scene::new("Always", Vec::new(), vec![app]).start().await;
    scene.pod["spec"]["containers"][0]["resources"] = sized(30, 40);
    scene.tell().await;
    scene.pass(0.007).await;
    scene.node.kill_agent().await;
    scene.node.start_agent();
    scene.pass(1.0).await;
    assert_eq!(scene.of("c")["resources"], sized(30, 40));
    let sandbox = scene.node.runtime.state().sandboxes[0].config.resources.clone();
    assert_eq!(sandbox.memory_limit_bytes, Some(40 << 20));
    assert_eq!(scene.condition("PodResizeInProgress"), Value::Null);
}
