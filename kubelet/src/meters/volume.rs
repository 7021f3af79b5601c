//! Counts the making of volumes, under the names of upstream's plugins.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::{Meters, VOLUME_TIME};

/// Counts that the volume `name` of a pod was made, or could not be, and how long that took.
pub(crate) fn note_volume(
    meters: &Meters,
    (pod, name): (&Pod, &str),
    (is_made, took): (bool, Duration),
) {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let plugin = volumes.find(|volume| volume.name == name).map_or("", plugin);
    let status = if is_made { "success" } else { "fail-unknown" };
    meters.time(&VOLUME_TIME, &["false", "volume_mount", status, plugin], took);
}

/// The plugins of a pod's volumes, each as often as it has one.
pub(crate) fn plugins(pod: &Pod) -> impl Iterator<Item = &'static str> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).map(plugin)
}

/// The plugin that upstream makes a volume by; a claim's is told as what it is here.
fn plugin(volume: &Volume) -> &'static str {
    let kinds = [
        (volume.empty_dir.is_some(), "kubernetes.io/empty-dir"),
        (volume.config_map.is_some(), "kubernetes.io/configmap"),
        (volume.secret.is_some(), "kubernetes.io/secret"),
        (volume.projected.is_some(), "kubernetes.io/projected"),
        (volume.downward_api.is_some(), "kubernetes.io/downward-api"),
        (volume.host_path.is_some(), "kubernetes.io/host-path"),
        (volume.nfs.is_some(), "kubernetes.io/nfs"),
        (volume.image.is_some(), "kubernetes.io/image"),
        (volume.persistent_volume_claim.is_some(), "kubernetes.io/persistent-claim"),
        (volume.ephemeral.is_some(), "kubernetes.io/persistent-claim"),
    ];
    kinds.into_iter().find(|(is, _)| *is).map_or("", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::meters::tests::counted;

    #[test]
    fn volumes_are_counted_by_plugin_and_outcome() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
            {"name": "a", "emptyDir": {}}, {"name": "b", "nfs": {"server": "s", "path": "/"}}]}}))
        .unwrap();
        let meters = Meters::default();
        let took = Duration::from_millis(3);
        note_volume(&meters, (&pod, "a"), (true, took));
        note_volume(&meters, (&pod, "b"), (false, took));
        let counts = counted(&meters, &VOLUME_TIME);
        assert_eq!(counts["false volume_mount success kubernetes.io/empty-dir"], 1);
        assert_eq!(counts["false volume_mount fail-unknown kubernetes.io/nfs"], 1);
    }
}
