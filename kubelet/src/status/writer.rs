//! Brings pod statuses to the API server: at once, in order, the newest wins, retried until the
//! server has it or the pod is gone.
//!
//! One task a pod that has something to write; it ends when the server is up to date. The final
//! delete goes through the same task, so it follows the last status. Patches are strategic merge
//! patches that name the UID, so a status never lands on a successor of the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::conditions;
use crate::api_retry::{self, Retry};
use crate::meters::{self, Meters};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(15);

/// The pod a status belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodKey {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl PodKey {
    /// The key of a pod.
    pub fn of(pod: &Pod) -> Self {
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
        }
    }
}

#[derive(Debug, Default)]
struct Pending {
    status: Option<PodStatus>,
    /// What the server may still have and has to drop.
    dropped: Dropped,
    delete: bool,
    /// Since when something is to be written.
    since: Option<Instant>,
}

/// Takes statuses.
#[derive(Clone)]
pub struct Writer {
    inner: Arc<Inner>,
}

struct Inner {
    client: kube::Client,
    shutdown: CancellationToken,
    meters: Meters,
    /// A key is present exactly while a task serves it.
    pods: Mutex<BTreeMap<PodKey, Pending>>,
    /// Counts the pods of which there is nothing more to write.
    done: watch::Sender<u64>,
}

impl Writer {
    /// A writer that stops trying at `shutdown`.
    pub fn new(client: kube::Client, shutdown: CancellationToken) -> Self {
        Self::metered(client, shutdown, Meters::default())
    }

    /// The same, and counts how long it takes.
    pub fn metered(client: kube::Client, shutdown: CancellationToken, meters: Meters) -> Self {
        let (pods, done) = (Mutex::new(BTreeMap::new()), watch::Sender::new(0));
        Self { inner: Arc::new(Inner { client, shutdown, meters, pods, done }) }
    }

    /// Writes `status`, in place of any that has not been written yet.
    pub fn update(&self, key: &PodKey, status: PodStatus, previous: &PodStatus) {
        let gone = Dropped::between(previous, &status);
        self.submit(key, |pending| {
            pending.status = Some(status);
            pending.since.get_or_insert_with(Instant::now);
            pending.dropped.extend(gone);
        });
    }

    /// Deletes the pod for good, after its last status.
    pub fn delete(&self, key: &PodKey) {
        self.submit(key, |pending| pending.delete = true);
    }

    /// Waits until everything is written that was handed over so far, and what comes meanwhile.
    pub async fn written(&self) {
        let mut done = self.inner.done.subscribe();
        let is_busy = || !self.inner.lock().is_empty();
        while is_busy() && done.changed().await.is_ok() {}
    }

    fn submit(&self, key: &PodKey, change: impl FnOnce(&mut Pending)) {
        let mut pods = self.inner.lock();
        let is_new = !pods.contains_key(key);
        change(pods.entry(key.clone()).or_default());
        drop(pods);
        if is_new {
            tokio::spawn(serve(Arc::clone(&self.inner), key.clone()));
        }
    }
}

type Guard<'a> = MutexGuard<'a, BTreeMap<PodKey, Pending>>;

impl Inner {
    fn lock(&self) -> Guard<'_> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what there is to write; forgets the pod when there is nothing.
    fn take(&self, key: &PodKey) -> Option<Pending> {
        let mut pods = self.lock();
        let pending = std::mem::take(pods.get_mut(key)?);
        if pending.status.is_none() && !pending.delete {
            self.forget(key, pods);
            return None;
        }
        Some(pending)
    }

    /// Forgets a pod, before anything more can be handed over for it.
    fn forget(&self, key: &PodKey, mut pods: Guard<'_>) {
        pods.remove(key);
        drop(pods);
        self.done.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Puts back what could not be written, unless something newer came.
    fn put_back(&self, key: &PodKey, failed: Pending) {
        let mut pods = self.lock();
        let pending = pods.entry(key.clone()).or_default();
        if pending.status.is_none() {
            pending.status = failed.status;
        }
        pending.dropped.extend(failed.dropped);
        pending.delete |= failed.delete;
        pending.since = failed.since.or(pending.since);
    }
}

async fn serve(inner: Arc<Inner>, key: PodKey) {
    let mut retry = Retry::default();
    while let Some(pending) = inner.take(&key) {
        let written = tokio::time::timeout(REQUEST, write(&inner.client, &key, &pending)).await;
        let error = match written {
            Ok(Ok(Outcome::Written)) => {
                if let Some(since) = pending.since {
                    inner.meters.time(&meters::STATUS_TIME, &[], since.elapsed());
                }
                retry.reset();
                continue;
            }
            Ok(Ok(Outcome::Gone)) => {
                inner.forget(&key, inner.lock());
                return;
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let wait = retry.next_wait(error.as_ref().and_then(api_retry::retry_after));
        match &error {
            Some(error) => {
                tracing::warn!(pod = %key.name, uid = %key.uid, %error, "status not written, trying again");
            }
            None => tracing::warn!(pod = %key.name, uid = %key.uid, "status not written in time"),
        }
        inner.put_back(&key, pending);
        tokio::select! {
            () = tokio::time::sleep_until(Instant::now() + wait) => {}
            () = inner.shutdown.cancelled() => return,
        }
    }
}

enum Outcome {
    Written,
    Gone,
}

async fn write(
    client: &kube::Client,
    key: &PodKey,
    pending: &Pending,
) -> Result<Outcome, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    if let Some(status) = &pending.status {
        let body = patch(key, status, &pending.dropped);
        let patched =
            api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(body)).await;
        if let Some(outcome) = gone(patched.map(|_| ()))? {
            return Ok(outcome);
        }
    }
    if !pending.delete {
        return Ok(Outcome::Written);
    }
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(key.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    let deleted = api.delete(&key.name, &parameters).await;
    gone(deleted.map(|_| ()))?;
    Ok(Outcome::Gone)
}

/// Not found, or another UID: this pod is no more, and nobody is to blame.
fn gone(result: Result<(), kube::Error>) -> Result<Option<Outcome>, kube::Error> {
    match result {
        Ok(()) => Ok(None),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            Ok(Some(Outcome::Gone))
        }
        Err(error) => Err(error),
    }
}

/// What a status has no more that a merge would keep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Addresses.
    pub ips: Vec<String>,
    /// Types of conditions that are decided here.
    pub conditions: Vec<String>,
}

impl Dropped {
    fn between(previous: &PodStatus, status: &PodStatus) -> Self {
        let ips = |s: &PodStatus| -> Vec<String> {
            s.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
        };
        let conditions = |s: &PodStatus| -> Vec<String> {
            let own = s.conditions.iter().flatten().filter(|c| conditions::is_ours(c));
            own.map(|c| c.type_.clone()).collect()
        };
        let gone = |list: &dyn Fn(&PodStatus) -> Vec<String>| {
            let kept = list(status);
            list(previous).into_iter().filter(|one| !kept.contains(one)).collect()
        };
        Self { ips: gone(&ips), conditions: gone(&conditions) }
    }

    fn extend(&mut self, more: Self) {
        self.ips.extend(more.ips);
        self.conditions.extend(more.conditions);
    }
}

/// Has a merge take entries out of a list, but for those that are in it again.
fn drop_from(fields: &mut Map<String, Value>, (list, key): (&str, &str), gone: &[String]) {
    if gone.is_empty() {
        return;
    }
    let Value::Array(kept) = fields.entry(list).or_insert_with(|| json!([])) else {
        return;
    };
    let present: BTreeSet<String> =
        kept.iter().filter_map(|one| one[key].as_str().map(str::to_owned)).collect();
    for one in gone.iter().collect::<BTreeSet<_>>() {
        if !present.contains(one) {
            kept.push(json!({"$patch": "delete", key: one}));
        }
    }
}

/// The patch that makes the server's status this one.
pub fn patch(key: &PodKey, status: &PodStatus, dropped: &Dropped) -> Value {
    let mut body = serde_json::to_value(status).unwrap_or_default();
    if let Value::Object(fields) = &mut body {
        // What a merge would keep has to be named to go.
        for field in ["reason", "message"] {
            fields.entry(field).or_insert(Value::Null);
        }
        // Conditions are merged one by one, each with what the server has of it. Those of others stay
        // out: what was last seen of one may be older than what the server has by now.
        let mut conditions = fields.get_mut("conditions").and_then(Value::as_array_mut);
        if let Some(conditions) = &mut conditions {
            conditions.retain(conditions::is_own);
        }
        for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
            for field in ["reason", "message"] {
                condition.entry(field).or_insert(Value::Null);
            }
        }
        drop_from(fields, ("conditions", "type"), &dropped.conditions);
        if !dropped.ips.is_empty() {
            drop_from(fields, ("podIPs", "ip"), &dropped.ips);
            fields.entry("podIP").or_insert(Value::Null);
        }
    }
    json!({"metadata": {"uid": key.uid}, "status": body})
}
