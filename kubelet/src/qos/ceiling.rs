//! The cgroup above all pods: they are held together to what the node does not keep back, so that no pods take
//! from the host's own services what is reserved for these (`enforceNodeAllocatable`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::interface::{Resources, Runtime};
use tokio_util::sync::CancellationToken;

use super::{Class, Driver, linear_weight, shares};
use crate::config::{Config, Reserved};
use crate::events::{Recorder, Severity};
use crate::node::facts::Facts;

/// How long a limit that cannot be set waits, as upstream: pods that use more may be evicted meanwhile.
const RETRY: Duration = Duration::from_secs(60);

/// More is kept back than there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid Node Allocatable configuration. Resource {resource:?} has a reservation of {reserved} but capacity \
     of {capacity}. Expected capacity >= reservation."
)]
pub struct TooMuch {
    resource: &'static str,
    reserved: u64,
    capacity: u64,
}

/// The limits of all pods together. Without `enforceNodeAllocatable` these are the whole node's: a weight
/// there must be, as one cgroup among others would else have a small part of the processors.
///
/// # Errors
/// When more is kept back than there is.
pub(crate) fn limits(config: &Config, facts: &Facts) -> Result<Resources, TooMuch> {
    let kept = match config.cgroups.enforce_allocatable {
        true => config.reserved,
        false => Reserved::default(),
    };
    let left = |resource, capacity: u64, reserved: u64| {
        capacity.checked_sub(reserved).ok_or(TooMuch { resource, reserved, capacity })
    };
    let millis = left("cpu", u64::from(facts.cpus) * 1000, kept.cpu_millis)?;
    let memory = left("memory", facts.memory_bytes, kept.memory_bytes)?;
    let pids = facts.most_pids.map(|most| left("pid", most, kept.pids)).transpose()?;
    Ok(Resources {
        cpu_weight: Some(linear_weight(shares(i64::try_from(millis).unwrap_or(i64::MAX)))),
        memory_limit_bytes: Some(memory),
        pids_limit: pids,
        ..Resources::default()
    })
}

/// Holds all pods to `limits`, trying until that is done, and tells so by events of the node.
pub(crate) async fn hold(
    limits: Resources,
    (driver, node): (Driver, String),
    (runtime, recorder): (Arc<dyn Runtime>, Recorder),
    shutdown: CancellationToken,
) {
    let group = driver.class_path(Class::Guaranteed);
    let tell = |severity, reason: &str, message: String| {
        recorder.node(&node, severity, reason, message);
    };
    loop {
        match enforce(runtime.as_ref(), &group, &limits).await {
            Ok(true) => {
                let message = "Updated Node Allocatable limit across pods".to_owned();
                return tell(Severity::Normal, "NodeAllocatableEnforced", message);
            }
            // What is not enforced here is told at the start.
            Ok(false) => return,
            Err(why) => {
                let message =
                    format!("Failed to update Node Allocatable Limits {:?}: {why}", [&group]);
                tracing::warn!(message);
                tell(Severity::Warning, "FailedNodeAllocatableEnforcement", message);
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn enforce(runtime: &dyn Runtime, group: &Path, limits: &Resources) -> Result<bool, String> {
    runtime.limit_class(group, limits).await.map_err(|error| crate::worker::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { cpus: 2, memory_bytes: 4 << 30, most_pids: Some(32_768), ..Facts::default() }
    }

    fn config(reserved: Reserved) -> Config {
        Config { reserved, ..Config::new("node-1", Vec::new()) }
    }

    #[test]
    fn what_is_kept_back_is_not_the_pods() {
        let all = limits(&config(Reserved::default()), &facts()).unwrap();
        assert_eq!((all.cpu_weight, all.memory_limit_bytes), (Some(79), Some(4 << 30)));
        assert_eq!(all.pids_limit, Some(32_768));
        let reserved =
            Reserved { cpu_millis: 1000, memory_bytes: 1 << 30, pids: 768, ..Default::default() };
        let some = limits(&config(reserved), &facts()).unwrap();
        assert_eq!((some.cpu_weight, some.memory_limit_bytes), (Some(39), Some(3 << 30)));
        assert_eq!(some.pids_limit, Some(32_000));
        let mut lenient = config(reserved);
        lenient.cgroups.enforce_allocatable = false;
        assert_eq!(limits(&lenient, &facts()).unwrap(), all);
    }

    #[test]
    fn more_than_there_is_cannot_be_kept_back() {
        let reserved = Reserved { memory_bytes: 5 << 30, ..Default::default() };
        let error = limits(&config(reserved), &facts()).unwrap_err().to_string();
        assert!(error.contains("Resource \"memory\" has a reservation of 5368709120"), "{error}");
    }
}
