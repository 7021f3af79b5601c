//! Follows the ConfigMaps, Secrets and trust bundles that pods' volumes are filled from, so that a change reaches the
//! files when the API server tells of it and not when somebody looks.
//!
//! ```text
//!   first pod names it ─► watched (one object, one watch) ─► last pod is gone: forgotten
//!                              │ immutable, or a bound claim: kept, no longer watched
//!                              └► newer than what was handed out: every pod that names it is told
//! ```
//!
//! One watch an object, by name, since that is all a node may watch in a real cluster; pods share it.
//! A claim it may not watch at all (Node authorizer): one that is not bound yet is asked for.
//! What a pod's volumes hold is decided elsewhere ([`crate::volumes`]): here is only what is newest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use kube::Resource;
use kube::api::Api;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api_retry::{self, Retry};
use crate::objects::{Kind, Lookup, ObjectRef};
use crate::source::{self, Event, Selection};

/// Changes of one object that may wait to be taken in.
const CHANGES: usize = 4;

/// How often a claim is asked for that is not bound.
const UNBOUND: Duration = Duration::from_secs(1);

/// An object of a namespace.
type Key = (String, ObjectRef);

/// Follows objects for pods. Cloning shares it.
#[derive(Clone, Default)]
pub(super) struct Following {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Followed>,
    pods: BTreeMap<String, Follower>,
}

/// An object that some pod's volumes name.
struct Followed {
    /// What is newest of it, once known.
    newest: Option<Lookup>,
    /// Ends the watch when dropped; absent where no change is to come.
    watch: Option<DropGuard>,
}

/// A pod with the objects its volumes name.
struct Follower {
    names: BTreeSet<Key>,
    changes: watch::Sender<u64>,
    /// Tells the pod at a certain time; ends when dropped.
    alarm: Option<DropGuard>,
}

impl Default for Follower {
    fn default() -> Self {
        Self { names: BTreeSet::new(), changes: watch::Sender::new(0), alarm: None }
    }
}

impl Following {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts up whenever the sources of a pod's volumes have changed.
    pub(super) fn changes(&self, uid: &str) -> watch::Receiver<u64> {
        self.state().pods.entry(uid.to_owned()).or_default().changes.subscribe()
    }

    /// Follows exactly these objects for a pod.
    pub(super) fn follow(
        &self,
        client: &kube::Client,
        (uid, namespace): (&str, &str),
        objects: BTreeSet<ObjectRef>,
    ) {
        let names: BTreeSet<Key> =
            objects.into_iter().map(|object| (namespace.to_owned(), object)).collect();
        let mut state = self.state();
        for key in &names {
            if !state.objects.contains_key(key) {
                let watch = Some(begin(client.clone(), key.clone(), Arc::downgrade(&self.state)));
                state.objects.insert(key.clone(), Followed { newest: None, watch });
            }
        }
        state.pods.entry(uid.to_owned()).or_default().names = names;
        state.drop_unnamed();
    }

    /// What is newest of an object, where it is followed and known.
    pub(super) fn newest(&self, namespace: &str, object: &ObjectRef) -> Option<Lookup> {
        let key = (namespace.to_owned(), object.clone());
        self.state().objects.get(&key)?.newest.clone()
    }

    /// Takes in what the API server answered about an object that may be followed.
    pub(super) fn note(&self, namespace: &str, object: &ObjectRef, lookup: &Lookup) {
        self.state().take((namespace.to_owned(), object.clone()), lookup.clone());
    }

    /// Tells a pod after a while that its sources have changed: a token is to be renewed.
    pub(super) fn remind(&self, uid: &str, after: Duration) {
        let stop = CancellationToken::new();
        let (state, name) = (Arc::downgrade(&self.state), uid.to_owned());
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = tokio::time::sleep(after) => {
                    if let Some(state) = state.upgrade() {
                        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
                        state.tell(&name);
                    }
                }
            }
        });
        if let Some(follower) = self.state().pods.get_mut(uid) {
            follower.alarm = Some(stop.drop_guard());
        }
    }

    /// Forgets a pod, and what only it named.
    pub(super) fn forget(&self, uid: &str) {
        let mut state = self.state();
        state.pods.remove(uid);
        state.drop_unnamed();
    }
}

impl State {
    fn drop_unnamed(&mut self) {
        let named: BTreeSet<&Key> = self.pods.values().flat_map(|pod| &pod.names).collect();
        self.objects.retain(|key, _| named.contains(key));
    }

    fn tell(&self, uid: &str) {
        if let Some(follower) = self.pods.get(uid) {
            follower.changes.send_modify(|count| *count += 1);
        }
    }

    /// Keeps what is new, and tells the pods that name it.
    fn take(&mut self, key: Key, lookup: Lookup) {
        let Some(followed) = self.objects.get_mut(&key) else { return };
        if matches!(lookup, Lookup::Failed(_)) || !is_news(followed.newest.as_ref(), &lookup) {
            return;
        }
        if is_settled(&lookup) {
            followed.watch = None;
        }
        // The first word on an object changes nothing: its pods asked for it themselves.
        let is_change = followed.newest.replace(lookup).is_some();
        if is_change {
            let pods = self.pods.values().filter(|pod| pod.names.contains(&key));
            for follower in pods {
                follower.changes.send_modify(|count| *count += 1);
            }
        }
    }
}

/// Whether `next` says something that `known` does not, and is not older.
fn is_news(known: Option<&Lookup>, next: &Lookup) -> bool {
    let Some(known) = known else { return true };
    match (version(known), version(next)) {
        (None, None) => false,
        (Some(known), Some(next)) => match (known.parse::<u64>(), next.parse::<u64>()) {
            (Ok(known), Ok(next)) => next > known,
            _ => known != next,
        },
        _ => true,
    }
}

/// The resource version; none of what is not there.
fn version(lookup: &Lookup) -> Option<&str> {
    match lookup {
        Lookup::ConfigMap(object) => object.metadata.resource_version.as_deref(),
        Lookup::Secret(object) => object.metadata.resource_version.as_deref(),
        Lookup::Claim(object) => object.metadata.resource_version.as_deref(),
        Lookup::TrustBundles(all) => Some(&all.version),
        Lookup::NotFound | Lookup::Failed(_) => None,
    }
}

/// Whether no change of the object concerns its pods any more.
fn is_settled(lookup: &Lookup) -> bool {
    match lookup {
        Lookup::ConfigMap(object) => object.immutable == Some(true),
        Lookup::Secret(object) => object.immutable == Some(true),
        Lookup::Claim(claim) => {
            let status = claim.status.as_ref();
            status.and_then(|status| status.phase.as_deref()) == Some("Bound")
        }
        Lookup::TrustBundles(_) | Lookup::NotFound | Lookup::Failed(_) => false,
    }
}

/// Begins to watch one object; the guard ends it.
fn begin(client: kube::Client, key: Key, state: Weak<Mutex<State>>) -> DropGuard {
    let stop = CancellationToken::new();
    match key.1.kind {
        Kind::ConfigMap => {
            watch_one(client, key, (state, stop.clone()), |o: ConfigMap| {
                Lookup::ConfigMap(Arc::new(o))
            });
        }
        Kind::Secret => {
            watch_one(client, key, (state, stop.clone()), |o: Secret| Lookup::Secret(Arc::new(o)));
        }
        Kind::TrustBundles => watch_bundles(client, key, (state, stop.clone())),
        Kind::Claim => {
            let asking = ask_until_bound(client, key, state);
            let stopped = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = asking => {}
                    () = stopped.cancelled() => {}
                }
            });
        }
    }
    stop.drop_guard()
}

fn watch_one<K>(
    client: kube::Client,
    key: Key,
    (state, stop): (Weak<Mutex<State>>, CancellationToken),
    found: fn(K) -> Lookup,
) where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client, &key.0);
    let fields = Some(format!("metadata.name={}", key.1.name));
    let (changes, mut inbox) = mpsc::channel(CHANGES);
    tokio::spawn(source::follow(api, Selection { fields, labels: None }, changes, stop));
    tokio::spawn(async move {
        while let Some(change) = inbox.recv().await {
            let lookup = match change {
                Event::Synced(all) => all.into_iter().next().map_or(Lookup::NotFound, found),
                Event::Applied(object) => found(object),
                Event::Deleted(_) => Lookup::NotFound,
            };
            let Some(state) = state.upgrade() else { return };
            state.lock().unwrap_or_else(PoisonError::into_inner).take(key.clone(), lookup);
        }
    });
}

/// Watches all trust bundles of the cluster, as upstream does: which are meant, labels say.
fn watch_bundles(
    client: kube::Client,
    key: Key,
    (state, stop): (Weak<Mutex<State>>, CancellationToken),
) {
    let (changes, mut inbox) = mpsc::channel(CHANGES);
    let selection = Selection { fields: None, labels: None };
    tokio::spawn(source::follow(Api::all(client), selection, changes, stop));
    tokio::spawn(async move {
        let mut all: BTreeMap<Option<String>, ClusterTrustBundle> = BTreeMap::new();
        let named = |bundle: ClusterTrustBundle| (bundle.metadata.name.clone(), bundle);
        while let Some(change) = inbox.recv().await {
            match change {
                Event::Synced(found) => all = found.into_iter().map(named).collect(),
                Event::Applied(bundle) => all.extend([named(bundle)]),
                Event::Deleted(bundle) => drop(all.remove(&bundle.metadata.name)),
            }
            let lookup = Lookup::TrustBundles(Arc::new(all.values().cloned().collect()));
            let Some(state) = state.upgrade() else { return };
            state.lock().unwrap_or_else(PoisonError::into_inner).take(key.clone(), lookup);
        }
    });
}

/// Asks for a claim from time to time, until it is bound or nobody follows it.
async fn ask_until_bound(client: kube::Client, key: Key, state: Weak<Mutex<State>>) {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client, &key.0);
    let mut retry = Retry::default();
    let mut wait = UNBOUND;
    loop {
        tokio::time::sleep(wait).await;
        let lookup = match api.get_opt(&key.1.name).await {
            Ok(found) => found.map_or(Lookup::NotFound, |claim| Lookup::Claim(Arc::new(claim))),
            Err(error) => {
                wait = retry.next_wait(api_retry::retry_after(&error));
                continue;
            }
        };
        retry.reset();
        wait = UNBOUND;
        let is_done = is_settled(&lookup);
        let Some(state) = state.upgrade() else { return };
        state.lock().unwrap_or_else(PoisonError::into_inner).take(key.clone(), lookup);
        if is_done {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config_map(version: u32, immutable: bool) -> Lookup {
        let object =
            json!({"metadata": {"resourceVersion": version.to_string()}, "immutable": immutable});
        Lookup::ConfigMap(Arc::new(serde_json::from_value(object).unwrap()))
    }

    fn followed(uids: &[&str]) -> (Following, Key) {
        let key = ("ns".to_owned(), ObjectRef::config_map("a"));
        let following = Following::default();
        let mut state = following.state();
        let watch = Some(CancellationToken::new().drop_guard());
        state.objects.insert(key.clone(), Followed { newest: None, watch });
        for uid in uids {
            state.pods.entry((*uid).to_owned()).or_default().names.insert(key.clone());
        }
        drop(state);
        (following, key)
    }

    #[test]
    fn every_pod_is_told_of_a_change_and_none_of_what_is_old() {
        let (following, key) = followed(&["one", "two"]);
        let (mut one, mut two) = (following.changes("one"), following.changes("two"));
        let mut told = |lookup| {
            following.note("ns", &key.1, &lookup);
            let seen = (one.has_changed().unwrap(), two.has_changed().unwrap());
            one.mark_unchanged();
            two.mark_unchanged();
            seen
        };
        assert_eq!(told(config_map(5, false)), (false, false), "the first word is no change");
        assert_eq!(told(config_map(7, false)), (true, true));
        assert_eq!(told(config_map(6, false)), (false, false), "an older state comes late");
        assert_eq!(told(Lookup::Failed("away".into())), (false, false));
        assert_eq!(told(Lookup::NotFound), (true, true));
        assert_eq!(told(Lookup::NotFound), (false, false));
        assert_eq!(told(config_map(9, false)), (true, true));
    }

    #[test]
    fn what_cannot_change_is_kept_and_not_watched() {
        let (following, key) = followed(&["one"]);
        following.note("ns", &key.1, &config_map(5, true));
        assert!(following.state().objects[&key].watch.is_none());
        assert!(following.newest("ns", &key.1).is_some());
    }

    #[test]
    fn an_object_is_followed_as_long_as_a_pod_names_it() {
        let (following, key) = followed(&["one", "two"]);
        following.forget("one");
        assert!(following.state().objects.contains_key(&key));
        following.forget("two");
        assert!(following.state().objects.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_is_got_until_it_is_bound_and_never_watched() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let router = axum::Router::new().fallback(move |request: axum::extract::Request| {
            let count = {
                let mut seen = seen.lock().unwrap();
                seen.push(request.uri().to_string());
                seen.len()
            };
            let phase = if count < 3 { "Pending" } else { "Bound" };
            let claim = json!({"metadata": {"name": "c", "resourceVersion": count.to_string()},
                               "status": {"phase": phase}});
            async move { axum::Json(claim) }
        });
        let client = kube::Client::new(router, "default");
        let following = Following::default();
        let mut changes = following.changes("one");
        let claim = ObjectRef::claim("c");
        following.follow(&client, ("one", "ns"), BTreeSet::from([claim.clone()]));
        let deadline = tokio::time::Instant::now() + UNBOUND * 10;
        while following.newest("ns", &claim).is_none_or(|newest| !is_settled(&newest)) {
            changes.changed().await.unwrap();
        }
        tokio::time::sleep_until(deadline).await;
        let path = "/api/v1/namespaces/ns/persistentvolumeclaims/c";
        assert_eq!(*asked.lock().unwrap(), [path; 3]);
    }
}
