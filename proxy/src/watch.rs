//! The edge to Kubernetes: watches Services and endpoint slices, and feeds the worker.
//!
//! The only module, with `convert`, that sees Kubernetes types. Owns the lives of the watches and
//! of the worker.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::mpsc::{Sender, channel};

use futures::{Stream, StreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cluster::Update;
use crate::convert::{self, Notices};
use crate::worker::{self, Message};
use crate::{Config, Error};
use seen::Seen;

mod seen;

/// Serves the Services of a cluster on this node until told to stop. What is programmed stays in
/// place afterwards: pods outlive the agent, and so do their Services.
///
/// Async, and spawns one thread that blocks. Survives API server outages.
///
/// # Errors
/// When the kernel cannot be programmed at all. Later failures are retried.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let (sender, receiver) = channel();
    let (opened, is_open) = oneshot::channel();
    let thread = {
        let config = config.clone();
        let netns = config.netns.clone();
        worker::in_namespace(netns.as_deref(), move || worker::run(config, receiver, opened))?
    };
    if is_open.await.is_ok() {
        let services = watch_services(client.clone(), &config, sender.clone());
        let slices = watch_slices(client, &config, sender);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = services => {}
            () = slices => {}
        }
    }
    // Both senders are gone with their futures: the worker ends after its last transaction.
    let joined = tokio::task::spawn_blocking(move || thread.join()).await;
    match joined {
        Ok(Ok(result)) => result,
        Ok(Err(_)) | Err(_) => Err(Error::Panicked),
    }
}

async fn watch_services(client: Client, config: &Config, sender: Sender<Message>) {
    let labels = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
    let options = watcher::Config::default().labels(labels);
    let stream = watcher(Api::<Seen>::all(client), options).default_backoff();
    let external_ips = config.external_ips;
    feed(
        stream,
        Feed {
            sender,
            name: |object: &Seen| convert::service_name(&object.0),
            read: move |object: &Seen| convert::service(&object.0, external_ips),
            gone: Update::NoService,
            listed: Message::ServicesListed,
        },
    )
    .await;
}

async fn watch_slices(client: Client, config: &Config, sender: Sender<Message>) {
    let options = watcher::Config::default().labels("!service.kubernetes.io/headless");
    let stream = watcher(Api::<EndpointSlice>::all(client), options).default_backoff();
    let node = config.node_name.clone();
    feed(
        stream,
        Feed {
            sender,
            name: convert::slice_name,
            read: move |object: &EndpointSlice| convert::slice(object, &node),
            gone: Update::NoSlice,
            listed: Message::SlicesListed,
        },
    )
    .await;
}

/// How one kind of object becomes messages.
struct Feed<Name, NameOf, Read> {
    sender: Sender<Message>,
    name: NameOf,
    read: Read,
    gone: fn(Name) -> Update,
    listed: fn(BTreeSet<Name>) -> Message,
}

/// Turns a watch into messages until the worker or the watch is gone.
async fn feed<K, Name, NameOf, Read>(
    stream: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    feed: Feed<Name, NameOf, Read>,
) where
    K: Resource + Debug,
    Name: Ord,
    NameOf: Fn(&K) -> Option<Name>,
    Read: Fn(&K) -> Option<(Update, Notices)>,
{
    let mut stream = std::pin::pin!(stream);
    let mut listed = BTreeSet::new();
    while let Some(event) = stream.next().await {
        let message = match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(watcher::Event::InitDone) => (feed.listed)(std::mem::take(&mut listed)),
            Ok(watcher::Event::InitApply(object)) => {
                listed.extend((feed.name)(&object));
                let Some(update) = read(&feed, &object) else { continue };
                Message::Update(update)
            }
            Ok(watcher::Event::Apply(object)) => {
                let Some(update) = read(&feed, &object) else { continue };
                Message::Update(update)
            }
            Ok(watcher::Event::Delete(object)) => {
                let Some(name) = (feed.name)(&object) else { continue };
                Message::Update((feed.gone)(name))
            }
            Err(error) => {
                tracing::warn!(%error, "watch failed; Services stay as they are");
                continue;
            }
        };
        if feed.sender.send(message).is_err() {
            return;
        }
    }
}

fn read<K, Name, NameOf, Read>(feed: &Feed<Name, NameOf, Read>, object: &K) -> Option<Update>
where
    K: Resource,
    Read: Fn(&K) -> Option<(Update, Notices)>,
{
    let (update, notices) = (feed.read)(object)?;
    for notice in notices {
        let meta = object.meta();
        tracing::warn!(namespace = ?meta.namespace, name = ?meta.name, notice, "not honoured");
    }
    Some(update)
}
