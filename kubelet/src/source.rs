//! One kind of object, listed and watched: the current set, then every change.
//!
//! ```text
//!            ┌────── 410, or an object that cannot be read ──────────┐
//!            ▼                                                       │
//!   Listing ───► [Event::Synced] ───► Watching(version) ─── ended ───┤
//!      │  ▲                                 ▲    │                   │
//!      └──┘ failed: wait                    └────┘ change, bookmark, timeout
//! ```
//!
//! A failure waits with jitter, at least as long as the server's `Retry-After`; a 410 lists once. What
//! cannot be read would come again at the same version, so that the set is listed: without the object,
//! or with another state of it, it can be read. A
//! server that cannot be reached changes nothing in what was delivered before. Serves pods,
//! Services, Nodes and whatever else the agent follows.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::Resource;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api_retry::{self, Retry};

/// How long one watch lasts; the server ends it then, and it goes on where it was.
const WATCH_SECONDS: u32 = 290;

/// A watch on which nothing came for longer than this is dead.
const SILENCE: Duration = Duration::from_secs(300);

/// How long a list may take.
const LIST: Duration = Duration::from_secs(60);

/// A change of the set.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<K> {
    /// This is the whole set; what is missing from it is gone.
    Synced(Vec<K>),
    /// Added or changed.
    Applied(K),
    /// Deleted; this was its last state.
    Deleted(K),
}

/// Which objects of a kind are followed.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// A field selector.
    pub fields: Option<String>,
    /// A label selector.
    pub labels: Option<String>,
}

/// Follows `api` until `shutdown` or until nobody listens. Never fails: it tries again.
pub async fn follow<K>(
    api: Api<K>,
    selection: Selection,
    events: mpsc::Sender<Event<K>>,
    shutdown: CancellationToken,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let following = async {
        let mut retry = Retry::default();
        let mut state = State::Listing;
        loop {
            let step = match state {
                State::Listing => list(&api, &selection, &events).await,
                State::Watching(version) => watch(&api, &selection, version, &events).await,
            };
            state = match step {
                Step::Go(next) => next,
                Step::Alive(next) => {
                    retry.reset();
                    next
                }
                Step::Wait { next, asked } => {
                    tokio::time::sleep(retry.next_wait(asked)).await;
                    next
                }
                Step::Stop => return,
            };
        }
    };
    tokio::select! {
        () = following => {}
        () = shutdown.cancelled() => {}
    }
}

enum State {
    /// The set has to be listed.
    Listing,
    /// Changes after this resource version are awaited.
    Watching(String),
}

enum Step {
    /// On, at once.
    Go(State),
    /// On, at once, and the server has shown that it works.
    Alive(State),
    Wait {
        next: State,
        asked: Option<Duration>,
    },
    Stop,
}

async fn list<K>(api: &Api<K>, selection: &Selection, events: &mpsc::Sender<Event<K>>) -> Step
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let parameters = ListParams {
        field_selector: selection.fields.clone(),
        label_selector: selection.labels.clone(),
        ..ListParams::default()
    };
    let again = |asked| Step::Wait { next: State::Listing, asked };
    let listing = api_retry::settled(|| api.list(&parameters));
    let list = match tokio::time::timeout(LIST, listing).await {
        Ok(Ok(list)) => list,
        Ok(Err(error)) => {
            tracing::warn!(kind = std::any::type_name::<K>(), %error, "list failed");
            return again(api_retry::retry_after(&error));
        }
        Err(_) => return again(None),
    };
    let version = list.metadata.resource_version.clone().unwrap_or_default();
    match events.send(Event::Synced(list.items)).await {
        Ok(()) => Step::Go(State::Watching(version)),
        Err(_) => Step::Stop,
    }
}

async fn watch<K>(
    api: &Api<K>,
    selection: &Selection,
    mut version: String,
    events: &mpsc::Sender<Event<K>>,
) -> Step
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let parameters = WatchParams {
        field_selector: selection.fields.clone(),
        label_selector: selection.labels.clone(),
        timeout: Some(WATCH_SECONDS),
        bookmarks: true,
        ..WatchParams::default()
    };
    let mut stream = match api.watch(&parameters, &version).await {
        Ok(stream) => Box::pin(stream),
        Err(error) => return failed::<K>(version, &error, Heard::Nothing),
    };
    let mut heard = Heard::Nothing;
    loop {
        let next = match tokio::time::timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(next))) => next,
            Ok(Some(Err(error))) => return failed::<K>(version, &error, heard),
            // A watch that ends without a word would otherwise be opened again without a pause.
            Ok(None) if heard == Heard::Nothing => {
                return Step::Wait { next: State::Watching(version), asked: None };
            }
            Ok(None) | Err(_) => return Step::Alive(State::Watching(version)),
        };
        let event = match next {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Event::Applied(object),
            WatchEvent::Deleted(object) => Event::Deleted(object),
            WatchEvent::Bookmark(bookmark) => {
                version = bookmark.metadata.resource_version;
                heard = Heard::Something;
                continue;
            }
            WatchEvent::Error(status) => {
                return failed::<K>(version, &kube::Error::Api(status), heard);
            }
        };
        heard = Heard::Something;
        if let Event::Applied(object) | Event::Deleted(object) = &event
            && let Some(seen) = &object.meta().resource_version
        {
            version.clone_from(seen);
        }
        if events.send(event).await.is_err() {
            return Step::Stop;
        }
    }
}

/// Whether a watch has brought anything yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    Something,
}

/// After 410 the set is listed again, once, and after what cannot be read; after anything else the
/// watch goes on where it was.
fn failed<K>(version: String, error: &kube::Error, heard: Heard) -> Step {
    let asked = api_retry::retry_after(error);
    let too_old = matches!(error, kube::Error::Api(status) if status.code == 410);
    match (too_old, heard) {
        (true, Heard::Something) => {
            tracing::info!("resource version too old, listing again");
            Step::Alive(State::Listing)
        }
        // A version that was listed a moment ago is too old already: do not spin.
        (true, Heard::Nothing) => Step::Wait { next: State::Listing, asked },
        (false, _) if is_unreadable(error) => {
            tracing::warn!(kind = std::any::type_name::<K>(), "an object cannot be read, listing");
            Step::Wait { next: State::Listing, asked }
        }
        (false, _) => {
            tracing::warn!(kind = std::any::type_name::<K>(), %error, "watch failed");
            Step::Wait { next: State::Watching(version), asked }
        }
    }
}

/// Whether the server said something that is no event of this kind. The client takes any other object
/// for a status that says nothing.
fn is_unreadable(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 0,
        kube::Error::SerdeError(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
