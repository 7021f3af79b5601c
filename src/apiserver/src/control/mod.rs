//! The loops that keep derived objects right. Each waits for changes of the kinds it looks at,
//! compares what is with what should be, and writes the difference in one transaction.

mod certificates;
mod claims;
mod cluster_info;
mod endpoints;
mod ephemeral;
mod events;
mod kubernetes;
mod namespaces;
mod nodes;
pub(crate) mod scheduler;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admit;
use crate::api::Api;
use crate::failure::Failure;
use crate::object::{ObjectExt, new_uid, stamp};
use crate::rbac;
use crate::resource::{Kind, key, of, prefix};
use crate::store::{Store, Tx};

pub(crate) use kubernetes::first_service_ip;

/// How long a loop waits after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Makes the objects that must be there before the first request.
///
/// # Errors
/// When the store fails.
pub(crate) async fn bootstrap(api: &Api) -> Result<(), Failure> {
    namespaces::bootstrap(api).await?;
    api.store
        .write(|tx| {
            rbac::defaults().into_iter().for_each(|(kind, object)| put(tx, kind, object));
            for class in admit::priority::system_classes() {
                if tx.get(&key(Kind::PriorityClass, "", class.name())).is_none() {
                    put(tx, Kind::PriorityClass, class);
                }
            }
            Ok(())
        })
        .await?;
    kubernetes::reconcile(api).await
}

/// Starts all loops.
pub(crate) fn spawn(api: &Arc<Api>, tasks: &mut JoinSet<()>) {
    let everything: &[Kind] = &[];
    tasks.spawn(run(Arc::clone(api), everything, |api| async move {
        namespaces::reconcile(&api).await
    }));
    tasks.spawn(run(Arc::clone(api), &[Kind::Service, Kind::EndpointSlice], |api| async move {
        kubernetes::reconcile(&api).await
    }));
    let storage: &[Kind] = &[Kind::PersistentVolume, Kind::PersistentVolumeClaim, Kind::Pod];
    tasks.spawn(run(Arc::clone(api), storage, |api| async move { claims::reconcile(&api).await }));
    let claimed: &[Kind] = &[Kind::PersistentVolumeClaim, Kind::Pod];
    tasks.spawn(run(
        Arc::clone(api),
        claimed,
        |api| async move { ephemeral::reconcile(&api).await },
    ));
    let scheduled: &[Kind] = &[Kind::Pod, Kind::Node, Kind::PersistentVolumeClaim];
    tasks.spawn(run(
        Arc::clone(api),
        scheduled,
        |api| async move { scheduler::reconcile(&api).await },
    ));
    tasks.spawn(run(
        Arc::clone(api),
        &[Kind::Service, Kind::Pod, Kind::EndpointSlice, Kind::Endpoints],
        |api| async move { endpoints::reconcile(&api).await },
    ));
    tasks.spawn(run(Arc::clone(api), &[Kind::Node], |api| async move {
        nodes::give_ranges(&api).await
    }));
    // Who may be approved without a person is said by roles and bindings.
    let approving: &[Kind] =
        &[Kind::CertificateSigningRequest, Kind::ClusterRole, Kind::ClusterRoleBinding];
    tasks.spawn(run(Arc::clone(api), approving, |api| async move {
        certificates::reconcile(&api).await
    }));
    tasks.spawn(cluster_info::keep(Arc::clone(api)));
    tasks.spawn(nodes::watch_leases(Arc::clone(api)));
    tasks.spawn(events::expire(Arc::clone(api)));
}

async fn run<F, R>(api: Arc<Api>, kinds: &'static [Kind], reconcile: F)
where
    F: Fn(Arc<Api>) -> R,
    R: Future<Output = Result<(), Failure>> + Send,
{
    let mut trigger = Trigger::new(&api.store, kinds, api.stop.clone());
    loop {
        if let Err(failure) = reconcile(Arc::clone(&api)).await {
            if api.stop.is_cancelled() {
                return;
            }
            tracing::warn!(%failure, ?kinds, "control loop");
            tokio::select! {
                () = api.stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => continue,
            }
        }
        if !trigger.fired().await {
            return;
        }
    }
}

/// Waits for changes of some kinds.
struct Trigger {
    store: Store,
    revisions: watch::Receiver<u64>,
    /// The prefixes looked at; none looks at everything.
    prefixes: Vec<String>,
    cursor: u64,
    stop: CancellationToken,
}

impl Trigger {
    fn new(store: &Store, kinds: &[Kind], stop: CancellationToken) -> Self {
        Self {
            store: store.clone(),
            revisions: store.subscribe(),
            prefixes: kinds.iter().map(|kind| prefix(*kind, "")).collect(),
            // Changes during the first run of the loop fire it once more.
            cursor: store.revision(),
            stop,
        }
    }

    /// Returns at the next change that matters; false when the server stops.
    async fn fired(&mut self) -> bool {
        loop {
            self.revisions.mark_unchanged();
            let (from, now) = (self.cursor, self.store.revision());
            self.cursor = now;
            if from != now && self.matters(from) {
                return true;
            }
            tokio::select! {
                () = self.stop.cancelled() => return false,
                changed = self.revisions.changed() => if changed.is_err() { return false },
            }
        }
    }

    fn matters(&self, from: u64) -> bool {
        match self.store.changes("", from) {
            // Forgotten changes might have mattered.
            Err(_) => true,
            Ok((changes, _)) => {
                self.prefixes.is_empty()
                    || changes.iter().any(|change| {
                        self.prefixes.iter().any(|prefix| change.key.starts_with(prefix.as_str()))
                    })
            }
        }
    }
}

/// An object as it becomes when the fields of `wanted` are written over it.
fn overlaid(kind: Kind, current: &Value, wanted: &Value) -> Value {
    let mut next = current.clone();
    if let (Some(into), Some(from)) = (next.as_object_mut(), wanted.as_object()) {
        let fields = from.iter().filter(|(field, _)| *field != "metadata");
        into.extend(fields.map(|(field, value)| (field.clone(), value.clone())));
    }
    for field in ["labels", "annotations", "ownerReferences"] {
        let pointer = format!("/metadata/{field}");
        if let Some(value) = wanted.pointer(&pointer) {
            next.put(&pointer, value.clone());
        }
    }
    admit::defaults(kind, &mut next);
    next
}

/// Whether an object is not what is wanted.
fn differs(kind: Kind, current: &Value, wanted: &Value) -> bool {
    overlaid(kind, current, wanted) != *current
}

/// Stores an object of the server's own making: like a creation, or like an update that keeps
/// what is not given.
fn put(tx: &mut Tx<'_>, kind: Kind, mut object: Value) {
    let resource = of(kind);
    let key = resource.key(object.namespace(), object.name());
    resource.stamp(&mut object);
    match tx.get(&key) {
        Some(current) if differs(kind, &current, &object) => {
            let mut next = overlaid(kind, &current, &object);
            admit::bump_generation(kind, &current, &mut next);
            tx.put(&key, next);
        }
        Some(_) => {}
        None => {
            object.put("/metadata/uid", new_uid());
            object.put("/metadata/creationTimestamp", stamp(Timestamp::now()));
            admit::prepare_create(kind, &mut object);
            admit::defaults(kind, &mut object);
            tx.put(&key, object);
        }
    }
}

/// An event about an object.
struct Happening<'a> {
    about: &'a Value,
    kind: Kind,
    class: &'static str,
    reason: &'static str,
    message: &'a str,
    component: &'static str,
}

fn record(tx: &mut Tx<'_>, happening: &Happening<'_>) {
    let about = happening.about;
    let now = Timestamp::now();
    let namespace = match about.namespace() {
        "" => "default",
        namespace => namespace,
    };
    let resource = of(happening.kind);
    let suffix = now.as_nanosecond().unsigned_abs();
    put(
        tx,
        Kind::Event,
        json!({
            "metadata": {"name": format!("{}.{suffix:x}", about.name()), "namespace": namespace},
            "involvedObject": {
                "apiVersion": resource.api_version(),
                "kind": resource.kind_name,
                "namespace": about.namespace(),
                "name": about.name(),
                "uid": about.uid(),
                "resourceVersion": about.text("/metadata/resourceVersion"),
            },
            "reason": happening.reason,
            "message": happening.message,
            "type": happening.class,
            "source": {"component": happening.component},
            "reportingComponent": happening.component,
            "reportingInstance": "",
            "firstTimestamp": stamp(now),
            "lastTimestamp": stamp(now),
            "count": 1,
        }),
    );
}
