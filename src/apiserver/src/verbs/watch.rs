//! watch: a cursor over the store's history.
//!
//! A watcher holds no queue of its own. It remembers the revision it has sent, is woken by new
//! ones, and reads what lies between from the shared history; one that falls too far behind gets
//! 410 and lists again, so a slow client costs no memory.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::read;
use crate::api::Api;
use crate::failure::Failure;
use crate::http::answer::{Answer, BodyError};
use crate::http::form::{self, Form};
use crate::http::handle::Call;
use crate::http::route::Target;
use crate::object::ObjectExt;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::store::{Act, Change, Store, parse};

/// How often a quiet watch sends a bookmark.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch lasts that does not say.
const DEFAULT_TIME: Duration = Duration::from_secs(30 * 60);

/// Streams the changes of a collection or an object.
///
/// # Errors
/// 400 for malformed parameters, 504 for a revision not reached yet. A forgotten revision is an
/// error event in the stream, as upstream has it.
pub(crate) fn stream(api: &Api, target: &Target, call: &Call) -> Result<Answer, Failure> {
    let watcher = Watcher::start(api, target, call)?;
    let events = stream::unfold(watcher, |mut watcher| async move {
        let line = watcher.next().await?;
        Some((Ok::<_, BodyError>(Frame::data(line)), watcher))
    });
    let mut response = Response::new(StreamBody::new(events).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Where a watch is in its life.
enum Stage {
    /// Sends changes as they come.
    Following,
    /// An error was sent; the stream ends.
    Ended,
}

struct Watcher {
    store: Store,
    revisions: watch::Receiver<u64>,
    stop: CancellationToken,
    resource: &'static Resource,
    prefix: String,
    name: String,
    selector: Selector,
    form: Form,
    /// Everything up to this revision is in `ready` or sent.
    cursor: u64,
    ready: VecDeque<Bytes>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    stage: Stage,
}

impl Watcher {
    fn start(api: &Api, target: &Target, call: &Call) -> Result<Self, Failure> {
        let query = &call.query;
        let wanted = read::wanted_revision(query)?;
        read::not_beyond(&api.store, wanted)?;
        let initial = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        if initial.is_some() && query.text("resourceVersionMatch") != "NotOlderThan" {
            return Err(Failure::bad_request(
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        let time = query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
        let time = time.map_or(DEFAULT_TIME, |seconds| Duration::from_secs(seconds.min(86_400)));
        let mut watcher = Self {
            store: api.store.clone(),
            revisions: api.store.subscribe(),
            stop: api.stop.clone(),
            resource: target.resource,
            prefix: target.resource.prefix(&target.namespace),
            name: target.name.clone(),
            selector: read::selector(target, query)?,
            form: call.form,
            cursor: 0,
            ready: VecDeque::new(),
            bookmarks: query.flag("allowWatchBookmarks"),
            next_bookmark: Instant::now() + BOOKMARK_EVERY,
            deadline: Instant::now() + time,
            stage: Stage::Following,
        };
        match (initial, wanted) {
            (Some(true), _) => {
                watcher.send_current();
                watcher.send_bookmark(InitialEnd::Marked);
            }
            // Without a revision, or at "0", a watch starts with what is there.
            (None, None | Some(0)) => watcher.send_current(),
            (Some(false), None | Some(0)) => watcher.cursor = api.store.revision(),
            (_, Some(revision)) => watcher.cursor = revision,
        }
        Ok(watcher)
    }

    fn send_current(&mut self) {
        let listing = self.store.list(&self.prefix);
        self.cursor = listing.revision;
        for (_, object) in &listing.items {
            if self.selects(object) {
                self.push("ADDED", object);
            }
        }
    }

    fn selects(&self, object: &Value) -> bool {
        (self.name.is_empty() || object.name() == self.name) && self.selector.matches(object)
    }

    fn push(&mut self, event: &str, object: &Value) {
        let shown = form::one(self.form, self.resource, object);
        self.push_line(event, &shown);
    }

    fn push_line(&mut self, event: &str, object: &Value) {
        let line = format!("{{\"type\":\"{event}\",\"object\":{object}}}\n");
        self.ready.push_back(Bytes::from(line));
    }

    fn send_bookmark(&mut self, end: InitialEnd) {
        let mut bookmark = json!({"metadata": {"resourceVersion": self.cursor.to_string()}});
        if end == InitialEnd::Marked {
            bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.resource.stamp(&mut bookmark);
        let shown = match self.form {
            Form::Object => bookmark,
            other => form::one(other, self.resource, &bookmark),
        };
        self.push_line("BOOKMARK", &shown);
        self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
    }

    /// The next line of the stream; none ends it.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if matches!(self.stage, Stage::Ended) {
                return None;
            }
            self.revisions.mark_unchanged();
            self.catch_up();
            if !self.ready.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.revisions.changed() => changed.ok()?,
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.send_bookmark(InitialEnd::Unmarked);
                }
            }
        }
    }

    fn catch_up(&mut self) {
        match self.store.changes(&self.prefix, self.cursor) {
            Ok((changes, revision)) => {
                for change in changes {
                    if let Some((event, object)) = self.event(&change) {
                        self.push(event, &object);
                    }
                }
                self.cursor = revision;
            }
            Err(gone) => {
                let status = Failure::too_old(self.cursor, gone.oldest).status();
                self.push_line("ERROR", &status);
                self.stage = Stage::Ended;
            }
        }
    }

    /// How a change looks through the selector: an object that stops matching is deleted to the
    /// watcher, one that starts matching is added.
    fn event(&self, change: &Change) -> Option<(&'static str, Value)> {
        let previous = change.previous.as_deref().map(parse);
        let was = previous.as_ref().is_some_and(|previous| self.selects(previous));
        let object = parse(&change.object);
        let is = change.act != Act::Removed && self.selects(&object);
        match (was, is) {
            (false, false) => None,
            (false, true) => Some(("ADDED", object)),
            (true, true) => Some(("MODIFIED", object)),
            (true, false) if change.act == Act::Removed => Some(("DELETED", object)),
            (true, false) => {
                let mut last = previous?;
                last.put("/metadata/resourceVersion", change.revision.to_string());
                Some(("DELETED", last))
            }
        }
    }
}

/// Whether a bookmark ends the initial events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InitialEnd {
    Marked,
    Unmarked,
}
