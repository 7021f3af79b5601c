//! Pod defaults, field by field as upstream sets them (`pkg/apis/core/v1/defaults.go`), and the
//! values its admission plugins add on every cluster (service account, tolerations). The token volume
//! is added in `pod_token`, the priority in `priority`.

use serde_json::{Value, json};

use crate::object::ObjectExt;

/// The seconds a pod stays on a node that is not ready or not reachable.
const TOLERATION_SECONDS: i64 = 300;

const LISTS: [&str; 3] = ["/initContainers", "/containers", "/ephemeralContainers"];

/// Sets the defaults of a pod. Doing it twice changes nothing.
pub(crate) fn apply(pod: &mut Value) {
    let is_mirror = super::is_mirror(pod);
    let Some(spec) = pod.get_mut("spec") else { return };
    default_spec(spec);
    spec.default_to("/enableServiceLinks", true);
    if !is_mirror {
        default_account(spec);
    }
    default_tolerations(spec);
    let host_network = spec.flag("/hostNetwork");
    for list in LISTS {
        for container in spec.list_mut(list) {
            default_requests(container);
            for port in container.list_mut("/ports") {
                if let Some(number) = port.int("/containerPort").filter(|_| host_network) {
                    port.default_to("/hostPort", number);
                }
            }
        }
    }
}

/// Sets the defaults of a template: those that do not depend on when a pod is made from it.
pub(crate) fn apply_to_template(object: &mut Value) {
    object.default_to("/template/spec", json!({}));
    default_spec(&mut object["template"]["spec"]);
}

fn default_spec(spec: &mut Value) {
    for (pointer, value) in [
        ("/restartPolicy", json!("Always")),
        ("/terminationGracePeriodSeconds", json!(30)),
        ("/dnsPolicy", json!("ClusterFirst")),
        ("/securityContext", json!({})),
        ("/schedulerName", json!("default-scheduler")),
    ] {
        spec.default_to(pointer, value);
    }
    name_account(spec);
    for list in LISTS {
        spec.list_mut(list).iter_mut().for_each(default_container);
    }
    spec.list_mut("/volumes").iter_mut().for_each(default_volume);
}

fn default_account(spec: &mut Value) {
    if spec.text("/serviceAccountName").is_empty() {
        spec.put("/serviceAccountName", "default");
    }
    name_account(spec);
}

/// The account has two names in a spec, of which the shorter one is the old one.
fn name_account(spec: &mut Value) {
    let name = match spec.text("/serviceAccountName") {
        "" => spec.text("/serviceAccount"),
        name => name,
    };
    let name = name.to_owned();
    if !name.is_empty() {
        spec.put("/serviceAccountName", name.as_str());
        spec.put("/serviceAccount", name);
    }
}

fn default_tolerations(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = spec.list("/tolerations").iter().any(|toleration| {
            matches!(toleration.text("/key"), "") && toleration.text("/operator") == "Exists"
                || toleration.text("/key") == key
                    && matches!(toleration.text("/effect"), "" | "NoExecute")
        });
        if covered {
            continue;
        }
        if !spec.has("/tolerations") {
            spec.put("/tolerations", json!([]));
        }
        if let Some(list) = spec["tolerations"].as_array_mut() {
            list.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

fn default_container(container: &mut Value) {
    container.default_to("/resources", json!({}));
    container.default_to("/terminationMessagePath", "/dev/termination-log");
    container.default_to("/terminationMessagePolicy", "File");
    let policy = pull_policy(container.text("/image"));
    container.default_to("/imagePullPolicy", policy);
    for port in container.list_mut("/ports") {
        port.default_to("/protocol", "TCP");
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            default_probe(probe);
        }
    }
    for hook in ["/lifecycle/postStart/httpGet", "/lifecycle/preStop/httpGet"] {
        if let Some(get) = container.pointer_mut(hook) {
            default_http_get(get);
        }
    }
    for variable in container.list_mut("/env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            field.default_to("/apiVersion", "v1");
        }
        if let Some(resource) = variable.pointer_mut("/valueFrom/resourceFieldRef") {
            resource.default_to("/divisor", "0");
        }
    }
}

/// What is limited and not asked for is asked for as it is limited.
fn default_requests(container: &mut Value) {
    let limits = container.map("/resources/limits").cloned().unwrap_or_default();
    for (resource, limit) in limits {
        let pointer =
            format!("/resources/requests/{}", resource.replace('~', "~0").replace('/', "~1"));
        if !container.has(&pointer) {
            if !container.has("/resources/requests") {
                container.put("/resources/requests", json!({}));
            }
            container["resources"]["requests"][resource] = limit;
        }
    }
}

/// `Always` for an image without tag or with `latest`, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None | Some((_, "latest" | "")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn default_probe(probe: &mut Value) {
    for (pointer, value) in [
        ("/timeoutSeconds", 1),
        ("/periodSeconds", 10),
        ("/successThreshold", 1),
        ("/failureThreshold", 3),
    ] {
        if matches!(probe.int(pointer), None | Some(0)) {
            probe.put(pointer, value);
        }
    }
    if let Some(get) = probe.get_mut("httpGet") {
        default_http_get(get);
    }
    if let Some(grpc) = probe.get_mut("grpc") {
        grpc.default_to("/service", "");
    }
}

fn default_http_get(get: &mut Value) {
    get.default_to("/path", "/");
    get.default_to("/scheme", "HTTP");
}

fn default_volume(volume: &mut Value) {
    // Upstream's default for a volume without a source.
    if volume.as_object().is_some_and(|map| map.len() == 1 && map.contains_key("name")) {
        volume.put("/emptyDir", json!({}));
    }
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(source) {
            source.default_to("/defaultMode", 0o644);
        }
    }
    if let Some(spec) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
        spec.default_to("/volumeMode", "Filesystem");
    }
    if let Some(path) = volume.get_mut("hostPath") {
        path.default_to("/type", "");
    }
    if let Some(image) = volume.get_mut("image") {
        let policy = pull_policy(image.text("/reference"));
        image.default_to("/pullPolicy", policy);
    }
    default_downward(volume);
    for source in volume.list_mut("/projected/sources") {
        default_downward(source);
    }
}

/// The files of a downward API source, if there is one.
fn default_downward(volume: &mut Value) {
    for item in volume.list_mut("/downwardAPI/items") {
        if let Some(field) = item.get_mut("fieldRef") {
            field.default_to("/apiVersion", "v1");
        }
        if let Some(resource) = item.get_mut("resourceFieldRef") {
            resource.default_to("/divisor", "0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_pod_gets_what_upstream_gives_it() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "web:1",
            "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}},
            "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "e"}]}});
        apply(&mut pod);
        let once = pod.clone();
        apply(&mut pod);
        assert_eq!(pod, once, "a second time changes nothing");
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["resources"]["requests"]["cpu"], "1");
        assert_eq!(container["readinessProbe"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(pod["spec"]["volumes"][0]["configMap"]["defaultMode"], 420);
        assert!(pod["spec"]["volumes"][1]["emptyDir"].is_object());
        assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
    }

    #[test]
    fn a_template_gets_what_does_not_depend_on_the_pod() {
        let mut object = json!({"template": {"spec": {"hostNetwork": true, "containers": [{"name": "a",
            "image": "web:1", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}]}}});
        apply_to_template(&mut object);
        let spec = &object["template"]["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        let container = &spec["containers"][0];
        assert_eq!(container["ports"][0], json!({"containerPort": 80, "protocol": "TCP"}));
        assert_eq!(container["resources"], json!({"limits": {"cpu": "1"}}));
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
        for field in ["tolerations", "serviceAccountName", "priority", "enableServiceLinks"] {
            assert!(spec.get(field).is_none(), "{field}");
        }
    }

    #[test]
    fn a_mirror_gets_no_service_account() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]},
            "metadata": {"annotations": {"kubernetes.io/config.mirror": "0"}}});
        apply(&mut pod);
        assert!(!pod.has("/spec/serviceAccountName") && !pod.has("/spec/serviceAccount"));
        assert_eq!(pod["spec"]["restartPolicy"], "Always");
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("r:5000/a", "Always"),
            ("r:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
