//! One pod on the fake node: what is done to it, and what is seen of it.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Node, deleted, pod};

/// One pod, `p` of UID `u1`, and the node it runs on.
pub(super) struct Scene {
    pub(super) node: Node,
    pub(super) pod: Value,
}

/// A container of this name and these other fields.
pub(super) fn container(name: &str, more: Value) -> Value {
    let mut container = json!({"name": name, "image": "img:1"});
    for (field, value) in more.as_object().into_iter().flatten() {
        container[field] = value.clone();
    }
    container
}

/// A sidecar of this name and these other fields.
pub(super) fn sidecar(name: &str, more: Value) -> Value {
    let mut sidecar = container(name, more);
    sidecar["restartPolicy"] = json!("Always");
    sidecar
}

/// Plain containers of these names; those that begin with `s` are sidecars.
pub(super) fn plain(names: &[&str]) -> Vec<Value> {
    let one = |name: &&str| match name.starts_with('s') {
        true => sidecar(name, json!({})),
        false => container(name, json!({})),
    };
    names.iter().map(one).collect()
}

impl Scene {
    /// A pod that has not been told of yet.
    pub(super) fn new(policy: &str, inits: Vec<Value>, apps: Vec<Value>) -> Self {
        let mut pod = pod("p", "u1", policy);
        pod["spec"]["initContainers"] = json!(inits);
        pod["spec"]["containers"] = json!(apps);
        pod["metadata"]["generation"] = json!(0);
        Self { node: Node::new(), pod }
    }

    pub(super) async fn start(mut self) -> Self {
        self.tell().await;
        self.pass(1.0).await;
        self
    }

    /// Tells the agent of the pod as it is now.
    pub(super) async fn tell(&mut self) {
        let generation = self.pod["metadata"]["generation"].as_i64().unwrap_or(0);
        self.pod["metadata"]["generation"] = json!(generation + 1);
        self.node.apply(self.pod.clone()).await;
    }

    pub(super) async fn pass(&self, seconds: f64) {
        self.node.pass(Duration::from_secs_f64(seconds)).await;
    }

    /// Ends a container by itself and lets the agent see it.
    pub(super) async fn exit(&self, name: &str, code: i32) {
        assert!(self.node.runtime.exit("u1", name, code), "{name} does not run");
        self.pass(0.2).await;
    }

    pub(super) async fn delete(&mut self, grace: i64) {
        self.pod = deleted(self.pod.clone(), grace);
        self.tell().await;
        self.pass(0.05).await;
    }

    /// Gives a container another image.
    pub(super) async fn set_image(&mut self, list: &str, index: usize, image: &str) {
        self.pod["spec"][list][index]["image"] = json!(image);
        self.tell().await;
        self.pass(0.2).await;
    }

    pub(super) fn command(&self, command: &str, code: i32, seconds: f64) {
        let outcome = (code, Duration::from_secs_f64(seconds));
        self.node.runtime.state().commands.insert(command.to_owned(), outcome);
    }

    pub(super) fn running(&self) -> Vec<String> {
        let mut running = self.node.runtime.running("u1");
        running.sort();
        running
    }

    pub(super) fn history(&self) -> Vec<String> {
        self.node.runtime.state().history.clone()
    }

    /// How often it happened.
    pub(super) fn times(&self, what: &str) -> usize {
        self.history().iter().filter(|h| *h == what).count()
    }

    /// Each of these happened, in this order.
    #[track_caller]
    pub(super) fn assert_order(&self, wanted: &[&str]) {
        let history = self.history();
        let mut rest = history.iter();
        for what in wanted {
            assert!(rest.any(|h| h == what), "{what:?} is missing or too early in {history:?}");
        }
    }

    /// The newest status the agent has made of the pod.
    pub(super) fn status(&self) -> Value {
        let found = self.node.shelf.find("ns", "p");
        match found {
            Some(pod) => serde_json::to_value(pod.status).unwrap(),
            None => self.node.api.statuses("p").last().unwrap().clone(),
        }
    }

    pub(super) fn phase(&self) -> String {
        self.status()["phase"].as_str().unwrap().to_owned()
    }

    /// The status of a container, of whatever kind.
    pub(super) fn of(&self, name: &str) -> Value {
        let status = self.status();
        let lists = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
        let mut all = lists.iter().flat_map(|list| status[*list].as_array().into_iter().flatten());
        all.find(|c| c["name"] == name).unwrap().clone()
    }

    pub(super) fn restarts(&self, name: &str) -> i64 {
        self.of(name)["restartCount"].as_i64().unwrap()
    }

    pub(super) fn waiting(&self, name: &str) -> String {
        let state = &self.of(name)["state"];
        state["waiting"]["reason"].as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn condition(&self, name: &str) -> Value {
        let status = self.status();
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.find(|c| c["type"] == name).cloned().unwrap_or_default()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.node.runtime.state().sandboxes.is_empty()
    }
}
