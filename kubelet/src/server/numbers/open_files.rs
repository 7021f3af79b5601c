//! What the processes of containers have open, in cAdvisor's families. Pure.

use std::collections::BTreeMap;

use berth_runtime::interface::{ContainerId, ContainerUsage, OpenFiles, PodUsage};

use super::cadvisor::labels;
use super::exposition::{Exposition, Kind, number};

/// What was counted, by container.
pub(super) type Counted = BTreeMap<ContainerId, OpenFiles>;

/// Name, help and number of a family.
type Family = (&'static str, &'static str, fn(&OpenFiles) -> u64);

const FAMILIES: [Family; 2] = [
    ("container_file_descriptors", "Number of open file descriptors for the container.", |open| {
        open.descriptors
    }),
    ("container_sockets", "Number of open sockets for the container.", |open| open.sockets),
];

const LIMITS: &str =
    "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice";

/// Writes what was counted.
pub(super) fn write(text: &mut Exposition, pods: &[PodUsage], counted: &Counted) {
    let containers = pods.iter().flat_map(|pod| pod.containers.iter().map(move |c| (pod, c)));
    let known: Vec<_> =
        containers.filter_map(|(pod, c)| Some((pod, c, counted.get(&c.id)?))).collect();
    for (name, help, pick) in FAMILIES {
        let mut family = text.family(name, Kind::Gauge, help);
        for (pod, container, open) in &known {
            let at_ms = Some(container.usage.at_ms);
            family.at(&labels_of(pod, container), number(pick(open)), at_ms);
        }
    }
    let mut family = text.family("container_ulimits_soft", Kind::Gauge, LIMITS);
    for (pod, container, open) in &known {
        let [first, id, image, name, namespace, of_pod] = labels_of(pod, container);
        let labels = [first, id, image, name, namespace, of_pod, ("ulimit", "max_open_files")];
        family.at(&labels, open.soft_limit.map_or(-1.0, number), Some(container.usage.at_ms));
    }
}

fn labels_of<'a>(pod: &'a PodUsage, container: &'a ContainerUsage) -> [(&'static str, &'a str); 6] {
    let of = [container.image.as_str(), container.id.as_str()];
    labels(&container.name, &container.cgroup, of, [&pod.pod.namespace, &pod.pod.name])
}
