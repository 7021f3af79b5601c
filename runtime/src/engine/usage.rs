//! What the sandboxes of the engine have used: one pass over their cgroups. Blocking; a pod costs a
//! dozen small files.

use std::collections::BTreeMap;

use crate::cgroup::{GroupPath, open_files, units, usage};
use crate::interface::{
    ContainerId, ContainerState, ContainerUsage, NamespaceMode, OpenFiles, PodUsage, SandboxState,
    SandboxStatus,
};

use super::Shared;

/// How deep the first process of a container may stand below its cgroup.
const DEPTH: u32 = 1;

/// Reads the counters of every sandbox that is up.
pub(super) fn read(shared: &Shared) -> Vec<PodUsage> {
    let sandboxes = shared.statuses(|_| true).into_iter();
    sandboxes.filter(|s| s.state == SandboxState::Ready).filter_map(|s| pod(shared, s)).collect()
}

/// Counts what the running containers have open.
pub(super) fn open_files(shared: &Shared) -> BTreeMap<ContainerId, OpenFiles> {
    let sandboxes = shared.statuses(|_| true);
    let containers = sandboxes.iter().flat_map(|s| s.containers.iter().map(move |c| (s, c)));
    let running = containers.filter(|(_, c)| matches!(c.state, ContainerState::Running { .. }));
    let counted = running.filter_map(|(sandbox, container)| {
        let home = units::home(&sandbox.config.cgroup_path, &sandbox.id);
        let path = home.join(container.id.as_str());
        let path = GroupPath::try_from(path.as_path()).ok()?;
        let open = open_files::read(&shared.hierarchy.directory(&path))?;
        Some((container.id.clone(), open))
    });
    counted.collect()
}

fn pod(shared: &Shared, sandbox: SandboxStatus) -> Option<PodUsage> {
    let directory = |path: &std::path::Path| {
        GroupPath::try_from(path).ok().map(|path| shared.hierarchy.directory(&path))
    };
    let config = &sandbox.config;
    let root = directory(&config.cgroup_path)?;
    let home = units::home(&config.cgroup_path, &sandbox.id);
    let name = |path: &std::path::Path| format!("/{}", path.display());
    let containers = sandbox.containers.iter().filter_map(|container| {
        let ContainerState::Running { started_at } = container.state else { return None };
        let path = home.join(container.id.as_str());
        Some(ContainerUsage {
            id: container.id.clone(),
            name: container.config.name.clone(),
            image: container.config.image_reference.clone(),
            started_at,
            cgroup: name(&path),
            usage: usage::read(&directory(&path)?),
            limits: container.config.resources.clone(),
        })
    });
    let containers: Vec<_> = containers.collect();
    let network = match config.network {
        NamespaceMode::Host => Vec::new(),
        // Any process of a container shows the pod's interfaces; the shim has the host's.
        NamespaceMode::Pod => sandbox
            .containers
            .iter()
            .filter_map(|container| directory(&home.join(container.id.as_str())))
            .find_map(|container| usage::processes(&container, DEPTH).first().copied())
            .map(usage::interfaces)
            .unwrap_or_default(),
    };
    Some(PodUsage {
        pod: config.pod.clone(),
        sandbox: sandbox.id.clone(),
        cgroup: name(&config.cgroup_path),
        total: usage::read(&root),
        limits: config.resources.clone(),
        network,
        containers,
    })
}
