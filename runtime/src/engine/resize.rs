//! Other limits for what runs: cgroup files are written, then the records say so.
//!
//! A crash in between leaves the old limits on record, so that whoever compares them with what is
//! wanted asks again. The cgroup files are the kernel's (*Control Group v2*): a `memory.max` below what
//! is in use would have it kill, which is why nothing is written then.

use std::sync::Arc;

use super::container::Container;
use super::sandbox::Sandbox;
use super::{Shared, failed};
use crate::cgroup::{self, GroupPath};
use crate::disk;
use crate::interface::{ContainerState, Resize, Resized, Resources, RuntimeError};

/// One resize, with what it is about.
struct Change {
    /// Nothing for the pod as a whole.
    container: Option<Arc<Container>>,
    path: GroupPath,
    old: Resources,
    resize: Resize,
}

pub(super) async fn resize(
    shared: Arc<Shared>,
    sandbox: Arc<Sandbox>,
    sizes: Vec<Resize>,
) -> Result<(), RuntimeError> {
    let _shared_gate = sandbox.gate.read().await;
    let operation = || format!("resize sandbox {}", sandbox.id);
    let changes = sizes.into_iter().filter_map(|resize| change(&sandbox, resize).transpose());
    let changes: Vec<Change> =
        changes.collect::<Result<_, _>>().map_err(|error| failed(operation(), error))?;
    refuse_too_little(&shared, &changes).await?;
    for Change { container, path, old, resize } in changes {
        let hierarchy = shared.hierarchy.clone();
        let new = resize.resources.clone();
        let write = move || hierarchy.change(&path, (&old, &new)).map_err(std::io::Error::other);
        disk::blocking(write).await.map_err(|error| failed(operation(), error))?;
        let noted = match container {
            Some(container) => container.resized(resize.resources, resize.labels).await,
            None => sandbox.resized(resize.resources, resize.labels).await,
        };
        noted.map_err(|error| failed(operation(), error))?;
    }
    Ok(())
}

/// Finds what a resize is about; nothing where it runs no more.
fn change(sandbox: &Sandbox, resize: Resize) -> Result<Option<Change>, cgroup::Error> {
    let Resized::Container(id) = &resize.of else {
        let (path, old) = (sandbox.group()?, sandbox.config().resources);
        return Ok(Some(Change { container: None, path, old, resize }));
    };
    let running =
        |container: &Arc<Container>| matches!(container.state(), ContainerState::Running { .. });
    let Some(container) = sandbox.container(id).filter(running) else {
        return Ok(None);
    };
    let path = GroupPath::try_from(sandbox.group_of(id).as_path())?;
    let old = container.config().resources;
    Ok(Some(Change { container: Some(container), path, old, resize }))
}

/// Refuses memory limits that fall below what is in use.
async fn refuse_too_little(shared: &Shared, changes: &[Change]) -> Result<(), RuntimeError> {
    let falling = changes.iter().filter_map(|change| {
        let limit = change.resize.resources.memory_limit_bytes?;
        let falls = change.old.memory_limit_bytes.is_none_or(|old| limit < old);
        let name = change.container.as_ref().map(|container| container.config().name);
        falls.then(|| (name, change.path.clone(), limit))
    });
    let falling: Vec<_> = falling.collect();
    let hierarchy = shared.hierarchy.clone();
    let read = move || {
        let used = |(name, path, limit)| (name, limit, hierarchy.memory_in_use(&path));
        Ok(falling.into_iter().map(used).collect::<Vec<_>>())
    };
    let read = disk::blocking(read).await;
    let read = read.map_err(|error| failed("read what a pod uses", error))?;
    let too_little: Vec<String> = read
        .into_iter()
        .filter_map(|(name, limit, used)| {
            let used = used.filter(|used| *used >= limit)?;
            Some(below(name.as_deref(), limit, used))
        })
        .collect();
    let text = match too_little.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    Err(RuntimeError::Invalid(format!("cannot decrease memory limits: {text}")))
}

/// One limit that is too low, in the kubelet's words.
fn below(container: Option<&str>, limit: u64, used: u64) -> String {
    let whose = match container {
        Some(name) => format!("container {name:?}"),
        None => "pod".to_owned(),
    };
    format!("attempting to set {whose} memory limit ({limit}) below current usage ({used})")
}
