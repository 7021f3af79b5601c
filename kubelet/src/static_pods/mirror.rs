//! Mirror pods: what the API server shows of static pods.
//!
//! ```text
//!   static pods ─┐            ┌─ missing ─► create      statuses ─► status writer, under the
//!   mirror pods ─┼─ [`plan`] ─┼─ stale ───► delete                  mirror's own UID
//!   (API watch)  ┘            └─ orphan ──► delete
//! ```
//!
//! A mirror is not run: it is a picture. Deleting it stops nothing, it is made again; the node deletes
//! it when its file is gone, or describes another pod, and the pod that it shows has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::manifest::HASH;
use crate::api_retry::{self, Retry};
use crate::status::writer::{PodKey, Writer};

/// The annotation that makes a pod a mirror; its value is the hash of the static pod.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(15);

/// Between rounds, so that a server that changes what it is told is not asked without end.
const PAUSE: Duration = Duration::from_millis(200);

/// A pod by namespace and name.
type Place = (String, String);

/// Whether `pod` is a mirror.
pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR))
}

fn place(pod: &Pod) -> Place {
    let key = PodKey::of(pod);
    (key.namespace, key.name)
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// What is known of both sides.
#[derive(Debug, Default)]
struct State {
    /// The static pods of the node.
    statics: BTreeMap<Place, Arc<Pod>>,
    /// Those that run here, or still end.
    running: BTreeMap<Place, Arc<Pod>>,
    /// The mirrors that the API server has; `None` until it was heard.
    mirrors: Option<BTreeMap<Place, Pod>>,
    /// The newest statuses, by the static pod's UID.
    statuses: BTreeMap<String, PodStatus>,
}

impl State {
    /// The static pod that a mirror at this place shows, if there is one.
    fn shown(&self, at: &Place, mirror: &Pod) -> Option<&Arc<Pod>> {
        let pods = [self.running.get(at), self.statics.get(at)];
        pods.into_iter().flatten().find(|pod| is_of(mirror, pod))
    }
}

/// A request to the API server.
#[derive(Debug, Clone, PartialEq)]
enum Action {
    Create(Arc<Pod>),
    Delete(PodKey),
}

/// Keeps the mirrors of a node. Cloning shares it.
#[derive(Clone)]
pub struct Mirrors {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    changed: Notify,
    statuses: Writer,
}

impl Mirrors {
    /// None yet; statuses go through `statuses`.
    pub fn new(statuses: Writer) -> Self {
        let state = Mutex::default();
        Self { inner: Arc::new(Inner { state, changed: Notify::new(), statuses }) }
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        self.inner.changed.notify_one();
        result
    }

    /// These are the static pods now.
    pub fn set_statics(&self, pods: impl Iterator<Item = Arc<Pod>>) {
        self.with(|state| state.statics = pods.map(|pod| (place(&pod), pod)).collect());
    }

    /// This pod runs here now; one that is not static is none of the mirrors' business.
    pub fn begin(&self, pod: &Arc<Pod>) {
        if super::is_static(pod) {
            self.with(|state| state.running.insert(place(pod), Arc::clone(pod)));
        }
    }

    /// This pod has ended.
    pub fn end(&self, pod: &Pod) {
        let at = place(pod);
        let is_it = |known: &Arc<Pod>| known.metadata.uid == pod.metadata.uid;
        self.with(|state| {
            if state.running.get(&at).is_some_and(is_it) {
                state.running.remove(&at);
            }
        });
    }

    /// These are all mirrors that the API server has.
    pub fn set_mirrors(&self, pods: Vec<Pod>) {
        let known: Vec<Place> = pods.iter().map(place).collect();
        self.with(|state| {
            state.mirrors = Some(pods.into_iter().map(|pod| (place(&pod), pod)).collect());
        });
        for place in known {
            self.write_status(&place);
        }
    }

    /// A mirror was added or changed.
    pub fn see(&self, pod: Pod) {
        let at = place(&pod);
        let is_new = self.with(|state| {
            let mirrors = state.mirrors.get_or_insert_default();
            let uid = pod.metadata.uid.clone();
            mirrors.insert(at.clone(), pod).is_none_or(|before| before.metadata.uid != uid)
        });
        if is_new {
            self.write_status(&at);
        }
    }

    /// A mirror is gone.
    pub fn lose(&self, pod: &Pod) {
        let at = place(pod);
        self.with(|state| {
            let mirrors = state.mirrors.get_or_insert_default();
            if mirrors.get(&at).is_some_and(|known| known.metadata.uid == pod.metadata.uid) {
                mirrors.remove(&at);
            }
        });
    }

    /// The newest status of a static pod.
    pub fn publish(&self, pod: &Pod, status: PodStatus) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.with(|state| {
            let (statics, running) = (&state.statics, &state.running);
            state.statuses.retain(|uid, _| {
                let mut all = statics.values().chain(running.values());
                all.any(|pod| pod.metadata.uid.as_ref() == Some(uid))
            });
            state.statuses.insert(uid, status);
        });
        self.write_status(&place(pod));
    }

    /// Brings the status of the static pod at `place` to its mirror, if that is its mirror.
    fn write_status(&self, at: &Place) {
        let state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mirror = state.mirrors.as_ref().and_then(|mirrors| mirrors.get(at));
        let Some(mirror) = mirror else { return };
        let Some(pod) = state.shown(at, mirror) else { return };
        let status = pod.metadata.uid.as_ref().and_then(|uid| state.statuses.get(uid));
        if let Some(status) = status {
            let previous = mirror.status.clone().unwrap_or_default();
            self.inner.statuses.update(&PodKey::of(mirror), status.clone(), &previous);
        }
    }

    /// Keeps the mirrors until `shutdown`.
    pub async fn run(
        self,
        client: kube::Client,
        node: Arc<RwLock<Node>>,
        shutdown: CancellationToken,
    ) {
        let keeping = async {
            let mut retry = Retry::default();
            loop {
                let actions = {
                    let state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
                    plan(&state)
                };
                let mut wait = None;
                let acted = !actions.is_empty();
                for action in actions {
                    let owner = owner(&node.read().unwrap_or_else(PoisonError::into_inner));
                    match tokio::time::timeout(REQUEST, self.apply(&client, action, owner)).await {
                        Ok(Ok(())) => retry.reset(),
                        Ok(Err(error)) => {
                            tracing::warn!(%error, "mirror pod not kept, trying again");
                            wait = Some(retry.next_wait(api_retry::retry_after(&error)));
                        }
                        Err(_) => wait = Some(retry.next_wait(None)),
                    }
                }
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None if acted => tokio::time::sleep(PAUSE).await,
                    None => self.inner.changed.notified().await,
                }
            }
        };
        tokio::select! {
            () = keeping => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn apply(
        &self,
        client: &kube::Client,
        action: Action,
        owner: Option<OwnerReference>,
    ) -> Result<(), kube::Error> {
        match action {
            Action::Create(pod) => {
                // The node is not registered yet; the mirror would outlive it.
                let Some(owner) = owner else { return Ok(()) };
                let mirror = mirror_of(&pod, owner);
                let namespace = mirror.metadata.namespace.clone().unwrap_or_default();
                let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
                match api.create(&PostParams::default(), &mirror).await {
                    Ok(made) => self.see(made),
                    // The watch has not told of it yet.
                    Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                        let name = mirror.metadata.name.unwrap_or_default();
                        let found = api.get(&name).await?;
                        match is_mirror(&found) {
                            true => self.see(found),
                            false => return Err(kube::Error::Api(status)),
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            Action::Delete(key) => {
                let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
                let parameters = DeleteParams {
                    grace_period_seconds: Some(0),
                    preconditions: Some(Preconditions {
                        uid: Some(key.uid.clone()),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                match api.delete(&key.name, &parameters).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(error) => return Err(error),
                }
                self.with(|state| {
                    if let Some(mirrors) = &mut state.mirrors {
                        mirrors.retain(|_, pod| pod.metadata.uid.as_ref() != Some(&key.uid));
                    }
                });
            }
        }
        Ok(())
    }
}

/// Whether `mirror` shows this static pod, as it is now.
fn is_of(mirror: &Pod, pod: &Pod) -> bool {
    mirror.metadata.deletion_timestamp.is_none()
        && annotation(mirror, MIRROR) == annotation(pod, HASH)
}

/// What brings the mirrors in line with the static pods. Nothing until the API server was heard.
fn plan(state: &State) -> Vec<Action> {
    let Some(mirrors) = &state.mirrors else { return Vec::new() };
    let mut actions = Vec::new();
    for (at, mirror) in mirrors {
        if state.shown(at, mirror).is_none() {
            actions.push(Action::Delete(PodKey::of(mirror)));
        }
    }
    let missing = state.statics.iter().filter(|(at, _)| !mirrors.contains_key(*at));
    actions.extend(missing.map(|(_, pod)| Action::Create(Arc::clone(pod))));
    // A stale mirror is gone first; its successor is planned with the next look.
    actions
}

/// Mirrors go with their node.
fn owner(node: &Node) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone()?,
        uid: node.metadata.uid.clone().filter(|uid| !uid.is_empty())?,
        controller: Some(true),
        block_owner_deletion: None,
    })
}

fn mirror_of(pod: &Pod, owner: OwnerReference) -> Pod {
    let mut mirror = pod.clone();
    let hash = annotation(pod, HASH).unwrap_or_default().to_owned();
    let metadata = &mut mirror.metadata;
    metadata.uid = None;
    metadata.resource_version = None;
    metadata.creation_timestamp = None;
    metadata.owner_references = Some(vec![owner]);
    metadata.annotations.get_or_insert_default().insert(MIRROR.to_owned(), hash);
    mirror.status = None;
    mirror
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, annotations: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"),
                         "annotations": annotations},
            "spec": {"containers": [{"name": "c"}]},
        }))
        .unwrap()
    }

    fn state(statics: &[Pod], mirrors: &[Pod]) -> State {
        State {
            statics: statics.iter().map(|p| (place(p), Arc::new(p.clone()))).collect(),
            mirrors: Some(mirrors.iter().map(|p| (place(p), p.clone())).collect()),
            ..State::default()
        }
    }

    #[test]
    fn mirrors_are_made_replaced_and_taken_away() {
        let file = pod("a", json!({HASH: "1"}));
        let good = pod("a", json!({HASH: "1", MIRROR: "1"}));
        let stale = pod("a", json!({HASH: "0", MIRROR: "0"}));
        let mut dying = good.clone();
        dying.metadata.deletion_timestamp =
            serde_json::from_value(json!("2023-11-14T22:20:00Z")).unwrap();
        let create = vec![Action::Create(Arc::new(file.clone()))];
        let delete = vec![Action::Delete(PodKey::of(&good))];
        assert_eq!(plan(&state(&[], &[])), []);
        assert_eq!(plan(&state(std::slice::from_ref(&file), &[])), create);
        assert_eq!(plan(&state(std::slice::from_ref(&file), std::slice::from_ref(&good))), []);
        assert_eq!(plan(&state(std::slice::from_ref(&file), std::slice::from_ref(&stale))), delete);
        let before = Arc::new(pod("a", json!({HASH: "0"})));
        let ending = State {
            running: BTreeMap::from([(place(&before), before)]),
            ..state(std::slice::from_ref(&file), &[stale])
        };
        assert_eq!(plan(&ending), [], "what it shows has not ended yet");
        assert_eq!(plan(&state(std::slice::from_ref(&file), &[dying])), delete);
        assert_eq!(plan(&state(&[], &[good])), delete);
        let unheard = State { mirrors: None, ..state(&[file], &[]) };
        assert_eq!(plan(&unheard), [], "nobody knows yet what the server has");
    }

    #[test]
    fn a_mirror_names_its_hash_and_its_node() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "uid": "u"}})).unwrap();
        let mirror = mirror_of(&pod("a", json!({HASH: "7"})), owner(&node).unwrap());
        assert_eq!(annotation(&mirror, MIRROR), Some("7"));
        assert_eq!(mirror.metadata.uid, None);
        let owners = mirror.metadata.owner_references.unwrap();
        assert_eq!((owners[0].kind.as_str(), owners[0].controller), ("Node", Some(true)));
        assert!(owner(&Node::default()).is_none());
    }
}
