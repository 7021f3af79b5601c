//! Events: what happened to a pod or the node, for `kubectl describe` and `kubectl get events`.
//!
//! [`Recorder`] takes them without blocking; a task of [`run`] brings them to the API server as
//! core/v1 Events. Like client-go's broadcaster it counts repetitions on one object, merges floods of
//! similar ones, and limits the rate for each object and in all. Events are best effort: what cannot
//! be delivered is dropped with a log line, and nothing waits for it.

mod correlator;
pub mod recent;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node, ObjectReference, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::worker::members::{self, Role};
use correlator::{Correlator, Decision};
use recent::Recent;

/// How many events may wait for delivery.
const QUEUE: usize = 1024;

/// How long one delivery may take.
const DELIVERY: Duration = Duration::from_secs(10);

/// Whether an event is bad news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// It is not.
    Normal,
    /// It is.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Occurrence {
    /// What it happened to.
    pub object: ObjectReference,
    /// Good or bad news.
    pub severity: Severity,
    /// The reason, in CamelCase.
    pub reason: String,
    /// The message.
    pub message: String,
    /// Annotations of the event.
    pub annotations: BTreeMap<String, String>,
}

/// Takes events.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Occurrence>,
    recent: Option<(Recent, Arc<dyn Clock>)>,
}

impl Recorder {
    /// A recorder and the queue that [`run`] (or a test) reads.
    pub fn new() -> (Self, mpsc::Receiver<Occurrence>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue, recent: None }, receiver)
    }

    /// The same, which also keeps what is recorded in `recent`.
    pub fn keeping(mut self, recent: Recent, clock: Arc<dyn Clock>) -> Self {
        self.recent = Some((recent, clock));
        self
    }

    /// Records something that happened to a pod.
    pub fn pod(&self, pod: &Pod, severity: Severity, reason: &str, message: impl Into<String>) {
        self.record(pod_reference(pod, None), severity, reason, message.into());
    }

    /// Records bad news of a pod, with facts for programs.
    pub fn annotated(
        &self,
        pod: &Pod,
        reason: &str,
        message: String,
        annotations: BTreeMap<String, String>,
    ) {
        self.note(Occurrence {
            object: pod_reference(pod, None),
            severity: Severity::Warning,
            reason: reason.to_owned(),
            message,
            annotations,
        });
    }

    /// Records something that happened to a container of a pod.
    pub fn container(
        &self,
        (pod, container): (&Pod, &str),
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        let object = pod_reference(pod, Some(container));
        self.record(object, severity, reason, message.into());
    }

    /// Records something that happened to the node.
    pub fn node(&self, name: &str, severity: Severity, reason: &str, message: impl Into<String>) {
        self.record(node_reference(name), severity, reason, message.into());
    }

    fn record(&self, object: ObjectReference, severity: Severity, reason: &str, message: String) {
        let (reason, annotations) = (reason.to_owned(), BTreeMap::new());
        self.note(Occurrence { object, severity, reason, message, annotations });
    }

    fn note(&self, occurrence: Occurrence) {
        if let Some((recent, clock)) = &self.recent {
            recent.note(&occurrence, clock.now());
        }
        if let Err(error) = self.queue.try_send(occurrence) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

fn pod_reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let list_of = |name: &str| match members::find(pod, name) {
        Some((Role::Init | Role::Sidecar, _)) => "initContainers",
        Some((Role::Ephemeral, _)) => "ephemeralContainers",
        _ => "containers",
    };
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: container.map(|name| format!("spec.{}{{{name}}}", list_of(name))),
    }
}

fn node_reference(name: &str) -> ObjectReference {
    let kind = <Node as k8s_openapi::Resource>::KIND;
    ObjectReference {
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

/// Who the events come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The program: `kubelet`.
    pub component: String,
    /// The node.
    pub host: String,
}

/// Delivers events until `shutdown`; what is queued then is still tried once.
pub async fn run(
    client: kube::Client,
    source: Source,
    clock: Arc<dyn Clock>,
    mut queue: mpsc::Receiver<Occurrence>,
    shutdown: CancellationToken,
) {
    let mut correlator = Correlator::new(source);
    loop {
        let occurrence = tokio::select! {
            biased;
            occurrence = queue.recv() => occurrence,
            () = shutdown.cancelled() => None,
        };
        let Some(occurrence) = occurrence else { return };
        let now = tokio::time::Instant::now();
        if let Some(wait) = correlator.throttle(now) {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return,
            }
        }
        let decision = correlator.correlate(occurrence, now, clock.now());
        let delivery = tokio::time::timeout(DELIVERY, deliver(&client, decision)).await;
        match delivery {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "event not delivered"),
            Err(_) => tracing::debug!("event not delivered in time"),
        }
    }
}

async fn deliver(client: &kube::Client, decision: Decision) -> Result<(), kube::Error> {
    match decision {
        Decision::Drop => Ok(()),
        Decision::Create(event) => create(client, &event).await,
        Decision::Repeat(event) => {
            let api = api(client, &event);
            let name = event.metadata.name.clone().unwrap_or_default();
            let patch = json!({
                "count": event.count,
                "lastTimestamp": event.last_timestamp,
                "message": event.message,
            });
            let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            match patched {
                Ok(_) => Ok(()),
                // It has expired: it starts a life of its own again.
                Err(kube::Error::Api(status)) if status.code == 404 => create(client, &event).await,
                Err(error) => Err(error),
            }
        }
    }
}

async fn create(client: &kube::Client, event: &Event) -> Result<(), kube::Error> {
    api(client, event).create(&PostParams::default(), event).await.map(|_| ())
}

fn api(client: &kube::Client, event: &Event) -> Api<Event> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
    Api::namespaced(client.clone(), namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_the_part_of_the_pod_it_is_about() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [{"name": "i"}], "containers": [{"name": "c"}],
            "ephemeralContainers": [{"name": "e"}]}}))
        .unwrap();
        let part = |name| pod_reference(&pod, Some(name)).field_path.unwrap();
        assert_eq!(part("i"), "spec.initContainers{i}");
        assert_eq!(part("c"), "spec.containers{c}");
        assert_eq!(part("e"), "spec.ephemeralContainers{e}");
        assert_eq!(pod_reference(&pod, None).field_path, None);
    }
}
