//! What the status tells while a container makes way for one of another image: upstream's kubelet ends
//! the one and starts the other in one go, and tells of both at once.

use std::time::Duration;

use serde_json::{Value, json};

use super::scene::{Scene, plain};

const POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];

impl Scene {
    /// The statuses that were written since there were `seen` of them.
    fn written_since(&self, seen: usize) -> Vec<Value> {
        self.node.api.statuses("p").split_off(seen)
    }

    /// Has the worker look at the pod, for a reason that its containers have no part in.
    async fn look(&mut self) {
        let looks = self.pod["metadata"]["generation"].to_string();
        self.pod["metadata"]["labels"] = json!({"looks": looks});
        self.tell().await;
    }

    /// How many records the runtime has of a container.
    fn records(&self, name: &str) -> usize {
        let state = self.node.runtime.state();
        let records = state.sandboxes.iter().flat_map(|sandbox| &sandbox.containers);
        records.filter(|record| record.config.name == name).count()
    }

    /// Gives the container another image, and waits until the old one has ended.
    async fn exchange(&mut self) -> usize {
        let seen = self.node.api.statuses("p").len();
        self.set_image("containers", 0, "img:2").await;
        assert!(!self.running().contains(&"c".to_owned()));
        seen
    }
}

fn condition<'a>(status: &'a Value, type_: &str) -> &'a Value {
    let mut conditions = status["conditions"].as_array().unwrap().iter();
    &conditions.find(|c| c["type"] == type_).unwrap()["status"]
}

fn of<'a>(status: &'a Value, name: &str) -> &'a Value {
    let lists = ["initContainerStatuses", "containerStatuses"];
    let mut all = lists.iter().flat_map(|list| status[*list].as_array().into_iter().flatten());
    all.find(|c| c["name"] == name).unwrap()
}

/// "should run through the lifecycle of Pods and PodStatus" looks at the conditions some milliseconds
/// after the new image was set.
#[tokio::test(start_paused = true)]
async fn a_container_that_is_exchanged_is_told_as_running_until_its_successor_runs() {
    for policy in POLICIES {
        let mut scene = Scene::new(policy, plain(&["s"]), plain(&["c", "d"])).start().await;
        *scene.node.images.takes.lock().unwrap() = Duration::from_millis(300);
        scene.node.runtime.state().making = Duration::from_millis(200);
        for (list, index, name) in [("containers", 0, "c"), ("initContainers", 0, "s")] {
            let seen = scene.node.api.statuses("p").len();
            scene.set_image(list, index, "img:2").await;
            // Looks on the way: while it is pulled, made, and started.
            for _ in 0..3 {
                scene.look().await;
                scene.pass(0.2).await;
            }
            scene.pass(0.5).await;
            assert_eq!(scene.running(), ["c", "d", "s"], "{policy}");
            let written = scene.written_since(seen);
            for status in &written {
                let told = of(status, name);
                assert_eq!(condition(status, "Ready"), "True", "{policy}: {status}");
                assert_eq!(condition(status, "ContainersReady"), "True", "{policy}: {status}");
                assert!(told["state"]["running"].is_object(), "{policy}: {told}");
                let count = if told["image"] == "img:2" { 1 } else { 0 };
                assert_eq!(told["restartCount"], count, "{policy}: {told}");
            }
            let last = of(written.last().unwrap(), name);
            assert_eq!((&last["image"], &last["restartCount"]), (&json!("img:2"), &json!(1)));
            assert_eq!(last["lastState"]["terminated"]["exitCode"], 143);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_takes_longer_than_upstream_needs_to_see_an_end_is_told() {
    let mut scene = Scene::new("Always", vec![], plain(&["c"])).start().await;
    *scene.node.images.takes.lock().unwrap() = Duration::from_secs(5);
    scene.exchange().await;
    scene.pass(0.7).await;
    assert_eq!(scene.condition("Ready")["status"], "True");
    scene.pass(0.3).await;
    assert!(scene.of("c")["state"]["terminated"].is_object());
    assert_eq!(scene.condition("Ready")["status"], "False");
    scene.pass(5.0).await;
    assert_eq!((scene.restarts("c"), scene.of("c")["ready"].as_bool()), (1, Some(true)));
}

#[tokio::test(start_paused = true)]
async fn what_holds_an_exchange_up_is_told_at_once() {
    let mut scene = Scene::new("Always", vec![], plain(&["c"])).start().await;
    scene.node.images.broken.lock().unwrap().insert("img:2".into(), "no".into());
    scene.set_image("containers", 0, "img:2").await;
    assert_eq!((scene.waiting("c").as_str(), scene.restarts("c")), ("ErrImagePull", 0));
    assert_eq!(scene.condition("Ready")["status"], "False");

    let mut scene = Scene::new("Always", vec![], plain(&["c"])).start().await;
    *scene.node.materials.config_failure.lock().unwrap() = Some("no".into());
    scene.set_image("containers", 0, "img:2").await;
    assert_eq!(scene.waiting("c"), "CreateContainerConfigError");
    assert_eq!(scene.condition("Ready")["status"], "False");

    let mut scene = Scene::new("Always", vec![], plain(&["c"])).start().await;
    scene.node.runtime.state().exits_at_once.insert("c".into(), 1);
    scene.set_image("containers", 0, "img:2").await;
    assert_eq!((scene.of("c")["ready"].as_bool(), scene.restarts("c") >= 1), (Some(false), true));
}

#[tokio::test(start_paused = true)]
async fn an_exchange_delays_nothing_that_befalls_the_others_or_the_pod() {
    let scene = || async {
        let mut scene = Scene::new("Always", vec![], plain(&["c", "d"])).start().await;
        *scene.node.images.takes.lock().unwrap() = Duration::from_secs(5);
        scene.exchange().await;
        scene
    };
    let other = scene().await;
    other.node.images.present.lock().unwrap().clear();
    other.exit("d", 3).await;
    assert!(other.of("c")["state"]["running"].is_object());
    assert_eq!(other.of("d")["state"]["terminated"]["exitCode"], 3);
    assert_eq!(other.condition("Ready")["status"], "False");

    let mut deleted = scene().await;
    deleted.delete(5).await;
    assert_eq!(deleted.of("c")["state"]["terminated"]["exitCode"], 143);
    assert_eq!(deleted.condition("Ready")["status"], "False");

    let lost = scene().await;
    lost.node.runtime.lose_sandbox("u1");
    lost.pass(0.003).await;
    assert!(lost.of("c")["state"]["running"].is_null());
    assert_eq!(lost.condition("Ready")["status"], "False");
}

/// Its successor is as good as started: a look at that moment must not take it for one that has ended for
/// good, and the pod for failed.
#[tokio::test(start_paused = true)]
async fn a_pod_that_is_looked_at_while_its_container_is_exchanged_goes_on() {
    let mut scene = Scene::new("Never", vec![], plain(&["c"])).start().await;
    scene.node.runtime.state().making = Duration::from_millis(500);
    scene.exchange().await;
    for _ in 0..4 {
        assert_eq!(scene.records("c"), 1, "its successor has no record yet");
        scene.look().await;
        scene.pass(0.05).await;
        assert_eq!(scene.phase(), "Running");
    }
    scene.pass(1.0).await;
    assert_eq!((scene.running(), scene.restarts("c")), (vec!["c".to_owned()], 1));
}
