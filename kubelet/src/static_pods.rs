//! Static pods: pods from files of a directory, or from one file (`staticPodPath`), run without asking an
//! API server.
//!
//! ```text
//!   directory ─ inotify, or 20 s ─► scan ─► manifest ─► the whole set ─► roster
//!                                                                          │
//!   API server ◄── mirror pods: created, replaced, deleted ◄── [`mirror`] ◄┘ statuses
//! ```
//!
//! A file is one pod, YAML or JSON ([`manifest`]); its UID is a hash of what it says, so a changed file
//! is another pod. One that is removed and written again, at once and unchanged, is restarted. Whoever can
//! write to the directory is root on the node already, but the files are read through limits all the same.
//! `Differs:` no URL.

pub mod manifest;
pub mod mirror;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::events::{Recorder, Severity};
use crate::source::Event;
use crate::status::containers::full_name;
use crate::sys;

/// How often the directory is read though nothing was heard of it.
const RESCAN: Duration = Duration::from_secs(20);

/// How long writers are left alone after the first sign of a change.
const SETTLE: Duration = Duration::from_millis(50);

/// The reason of the event of a pod whose name another has; upstream's.
const INVALID: &str = "FailedValidation";

/// A manifest is not longer than what an API server takes.
const MAX_BYTES: u64 = 3 << 20;

/// Follows the manifest at `path`, or all of a directory there, until `shutdown`, or until nobody listens.
/// Each time the set changes the whole of it is sent; a pod whose name another has is told of.
pub async fn follow(
    path: PathBuf,
    node_name: String,
    (changes, events): (mpsc::Sender<Event<Pod>>, Recorder),
    shutdown: CancellationToken,
) {
    let mut known: Option<Vec<Pod>> = None;
    let mut removed = BTreeSet::new();
    let mut complaints = BTreeMap::new();
    loop {
        // Watched before it is read, so that nothing is missed in between.
        let watch = watch(&path);
        let (place, node) = (path.clone(), node_name.clone());
        let scanned = tokio::task::spawn_blocking(move || scan(&place, &node)).await;
        if let Ok(Some(Scan { pods, files, refused })) = scanned {
            for (path, why) in &refused {
                if complaints.get(path) != Some(why) {
                    tracing::error!(path = %path.display(), error = %why, "static pod refused");
                    if let Refusal::Duplicate(pod) = why {
                        events.pod(pod, Severity::Warning, INVALID, why.to_string());
                    }
                }
            }
            complaints = refused;
            let is_back = |pod: &Pod| {
                let file = files.get(pod.metadata.uid.as_deref().unwrap_or_default());
                file.is_some_and(|file| removed.contains(file))
                    && known.as_ref().is_some_and(|known| known.contains(pod))
            };
            let stayed: Vec<Pod> = pods.iter().filter(|pod| !is_back(pod)).cloned().collect();
            let mut sets = Vec::new();
            if stayed.len() < pods.len() {
                sets.push(stayed);
            }
            if !sets.is_empty() || known.as_ref() != Some(&pods) {
                sets.push(pods.clone());
            }
            for set in sets {
                if changes.send(Event::Synced(set)).await.is_err() {
                    return;
                }
            }
            known = Some(pods);
        }
        removed = tokio::select! {
            removed = changed(watch) => removed,
            () = tokio::time::sleep(RESCAN) => BTreeSet::new(),
            () = shutdown.cancelled() => return,
        };
    }
}

/// What is there.
struct Scan {
    /// Its pods, by namespace and name.
    pods: Vec<Pod>,
    /// The names of their files, by UID.
    files: BTreeMap<String, OsString>,
    /// Its files that are none, with the reason.
    refused: BTreeMap<PathBuf, Refusal>,
}

/// Why a file is no pod.
#[derive(Debug, PartialEq, thiserror::Error)]
enum Refusal {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error(transparent)]
    Invalid(#[from] manifest::Error),
    /// Another file has a pod of this name.
    #[error(
        "Error validating pod {} from file due to duplicate pod name {:?}, ignoring",
        full_name(.0), .0.metadata.name.as_deref().unwrap_or_default()
    )]
    Duplicate(Box<Pod>),
}

/// Reads all manifests. `None` when the directory cannot be read: what is known stays. What is not there
/// is empty. Blocks.
fn scan(place: &Path, node_name: &str) -> Option<Scan> {
    let mut pods = BTreeMap::new();
    let (mut files, mut refused) = (BTreeMap::new(), BTreeMap::new());
    let paths = match manifests(place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Some(Scan { pods: Vec::new(), files, refused });
        }
        Err(error) => {
            tracing::warn!(path = %place.display(), %error, "static pods not read");
            return None;
        }
        Ok(paths) => paths,
    };
    for path in paths {
        let pod = read(&path)
            .map_err(|error| Refusal::Unreadable(error.to_string()))
            .and_then(|text| Ok(manifest::pod(&text, &path, node_name)?));
        match pod {
            Ok(pod) => {
                let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
                match pods.entry(key) {
                    Entry::Vacant(place) => {
                        let name = path.file_name().unwrap_or_default().to_owned();
                        files.insert(pod.metadata.uid.clone().unwrap_or_default(), name);
                        place.insert(pod);
                    }
                    Entry::Occupied(_) => {
                        refused.insert(path, Refusal::Duplicate(Box::new(pod)));
                    }
                }
            }
            Err(why) => {
                refused.insert(path, why);
            }
        }
    }
    Some(Scan { pods: pods.into_values().collect(), files, refused })
}

/// The file there, or those of a directory there that are not hidden, in the order of their names.
fn manifests(place: &Path) -> std::io::Result<Vec<PathBuf>> {
    if std::fs::metadata(place)?.is_file() {
        return Ok(vec![place.to_owned()]);
    }
    let is_manifest = |path: &PathBuf| {
        let is_hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
        !is_hidden && path.is_file()
    };
    let entries = std::fs::read_dir(place)?.flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = entries.filter(is_manifest).collect();
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match u64::try_from(text.len()).is_ok_and(|length| length <= MAX_BYTES) {
        true => Ok(text),
        false => Err(std::io::Error::other("longer than 3 MiB")),
    }
}

fn watch(place: &Path) -> Option<AsyncFd<OwnedFd>> {
    use inotify::{CreateFlags, WatchFlags};
    // A file that is replaced by another is so in its directory.
    let directory = if place.is_dir() { place } else { place.parent()? };
    let watched = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).and_then(|fd| {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE;
        inotify::add_watch(&fd, directory, flags)?;
        Ok(fd)
    });
    watched.ok().and_then(|fd| sys::watch(fd).ok())
}

/// Waits until something happens in the watched directory, and a moment longer; for ever without a
/// watch. Returns the names of files that were removed meanwhile, whether they are there again or not.
async fn changed(watch: Option<AsyncFd<OwnedFd>>) -> BTreeSet<OsString> {
    let Some(watch) = watch else { return std::future::pending().await };
    let mut removed = BTreeSet::new();
    loop {
        let Ok(mut ready) = watch.readable().await else { return std::future::pending().await };
        if drain(&watch, &mut removed) {
            break;
        }
        ready.clear_ready();
    }
    tokio::time::sleep(SETTLE).await;
    drain(&watch, &mut removed);
    removed
}

/// Takes in what is to be read without waiting. Whether there was anything.
fn drain(watch: &AsyncFd<OwnedFd>, removed: &mut BTreeSet<OsString>) -> bool {
    use inotify::ReadFlags;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch.get_ref(), &mut buffer);
    let mut any = false;
    while let Ok(event) = reader.next() {
        any = true;
        if event.events().intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM)
            && let Some(name) = event.file_name()
        {
            removed.insert(OsStr::from_bytes(name.to_bytes()).to_owned());
        }
    }
    any
}

/// Whether `pod` comes from a file of this node.
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let source = annotations.and_then(|a| a.get(manifest::SOURCE));
    source.is_some_and(|source| source != "api") && !mirror::is_mirror(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  \
             - {{name: c, image: {image}}}\n"
        )
    }

    #[tokio::test]
    async fn files_are_followed_at_once_and_bad_ones_harm_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("a.yaml"), manifest("a", "i:1")).unwrap();
        std::fs::write(path("bad.yaml"), "kind: Pod\n  x").unwrap();
        std::fs::write(path(".hidden.yaml"), manifest("hidden", "i:1")).unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        let (changes, mut inbox) = mpsc::channel(4);
        let (events, mut told) = Recorder::new();
        let shutdown = CancellationToken::new();
        let _ends = shutdown.clone().drop_guard();
        let place = directory.path().to_owned();
        tokio::spawn(follow(place, "Node-1".to_owned(), (changes, events), shutdown));
        let mut names = async || match inbox.recv().await {
            Some(Event::Synced(pods)) => pods
                .iter()
                .map(|p| (p.metadata.name.clone().unwrap(), p.metadata.uid.clone().unwrap()))
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let first = names().await;
        assert_eq!(first[0].0, "a-node-1");
        assert_eq!(first.len(), 1);
        std::fs::write(path("b.yaml"), manifest("b", "i:1")).unwrap();
        assert_eq!(names().await.len(), 2);
        std::fs::write(path("a.yaml"), manifest("a", "i:2")).unwrap();
        let changed = names().await;
        assert_ne!(changed[0].1, first[0].1, "another content is another pod");
        std::fs::remove_file(path("a.yaml")).unwrap();
        std::fs::write(path("copy.yaml"), manifest("b", "i:3")).unwrap();
        let last = names().await;
        assert_eq!((last.len(), last[0].0.as_str()), (1, "b-node-1"));
        let event = told.try_recv().unwrap();
        assert_eq!(event.reason, "FailedValidation");
        let (start, end) = ("Error validating pod b-node-1_default(", ", ignoring");
        assert!(event.message.starts_with(start) && event.message.ends_with(end), "{event:?}");
        assert!(told.try_recv().is_err(), "bad files are no pods and have no events");
        // Away and back again before anybody has looked: the pod was not there for a moment.
        std::fs::remove_file(path("b.yaml")).unwrap();
        std::fs::remove_file(path("copy.yaml")).unwrap();
        std::fs::write(path("b.yaml"), manifest("b", "i:1")).unwrap();
        assert_eq!((names().await, names().await), (Vec::new(), last));
    }

    #[tokio::test]
    async fn a_single_file_is_followed_and_others_beside_it_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pod.yaml");
        std::fs::write(directory.path().join("other.yaml"), manifest("other", "i:1")).unwrap();
        let (changes, mut inbox) = mpsc::channel(4);
        let (events, _told) = Recorder::new();
        let shutdown = CancellationToken::new();
        let _ends = shutdown.clone().drop_guard();
        tokio::spawn(follow(file.clone(), "n".to_owned(), (changes, events), shutdown));
        let mut names = async || match inbox.recv().await {
            Some(Event::Synced(pods)) => {
                pods.into_iter().map(|pod| pod.metadata.name.unwrap()).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(names().await, [""; 0], "it is not there yet");
        for name in ["a", "b"] {
            let draft = directory.path().join(".pod.yaml.new");
            std::fs::write(&draft, manifest(name, "i:1")).unwrap();
            std::fs::rename(&draft, &file).unwrap();
            assert_eq!(names().await, [format!("{name}-n")]);
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(names().await, [""; 0]);
    }
}
