//! Rules for pod specs: what a pod must have, and what may change once it exists
//! (`pkg/apis/core/validation`). The rules here are those that a node or a user relies on.

mod environment;
mod mounts;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{names, objects, quantity, resize, storage, tolerations};
use crate::failure::Cause;
use crate::object::ObjectExt;

/// What a spec update may touch, in upstream's words.
const UPDATE_RULE: &str = "pod updates may not change fields other than \
     `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
     `spec.tolerations` (only additions to existing tolerations),\
     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// The QoS class of a pod, from requests and limits of cpu and memory.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    let of_pod = pod.get("spec").filter(|spec| {
        ["requests", "limits"].iter().any(|of| spec.has(&format!("/resources/{of}")))
    });
    let all = pod.list("/spec/containers").iter().chain(pod.list("/spec/initContainers"));
    // What the pod has as a whole decides alone.
    let all = all.filter(|_| of_pod.is_none()).chain(of_pod);
    for holder in all {
        for resource in ["cpu", "memory"] {
            let amount = |of: &str| {
                let text = holder.text(&format!("/resources/{of}/{resource}"));
                quantity::millis(text).filter(|amount| *amount > 0)
            };
            let limit = amount("limits");
            let request = amount("requests").or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Checks the spec of a new pod.
pub(crate) fn check(pod: &Value, causes: &mut Vec<Cause>) {
    check_spec(pod, causes);
    for list in ["containers", "initContainers"] {
        for (index, container) in pod.list(&format!("/spec/{list}")).iter().enumerate() {
            let image = container.text("/image");
            if image.trim() != image {
                let field = format!("spec.{list}[{index}].image");
                let detail = "must not have leading or trailing whitespace";
                causes.push(Cause::invalid(field, &json!(image), detail));
            }
        }
    }
    if !pod.list("/spec/ephemeralContainers").is_empty() {
        causes.push(Cause::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
}

/// Checks what pods are made from: it is where they have their metadata and spec. Whoever makes the pod fills
/// in what a template may leave open, an image of blanks.
pub(super) fn check_template(template: &Value, causes: &mut Vec<Cause>) {
    names::check_labels("labels", template.map("/metadata/labels"), causes);
    names::check_annotations("annotations", template, causes);
    check_spec(template, causes);
    if !template.list("/spec/ephemeralContainers").is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        causes.push(Cause::forbidden("spec.ephemeralContainers", detail));
    }
}

fn check_spec(pod: &Value, causes: &mut Vec<Cause>) {
    if pod.list("/spec/containers").is_empty() {
        causes.push(Cause::required("spec.containers", ""));
    }
    let mut volumes = BTreeSet::new();
    for (index, volume) in pod.list("/spec/volumes").iter().enumerate() {
        let field = format!("spec.volumes[{index}].name");
        names::check_label(&field, volume.text("/name"), causes);
        if !volumes.insert(volume.text("/name")) {
            causes.push(Cause::duplicate(field, &volume["name"]));
        }
        if volume.has("/image") && volume.text("/image/reference").is_empty() {
            let field = format!("spec.volumes[{index}].image.reference");
            causes.push(Cause::required(field, ""));
        }
        storage::check_ephemeral(index, volume, causes);
        if volume.as_object().is_some_and(|map| map.len() > 2) {
            causes.push(Cause::forbidden(
                format!("spec.volumes[{index}]"),
                "may not specify more than 1 volume type",
            ));
        }
    }
    let mut names_seen = BTreeSet::new();
    for list in ["containers", "initContainers"] {
        for (index, container) in pod.list(&format!("/spec/{list}")).iter().enumerate() {
            let path = format!("spec.{list}[{index}]");
            if !names_seen.insert(container.text("/name")) {
                causes.push(Cause::duplicate(format!("{path}.name"), &container["name"]));
            }
            check_container(&path, (container, &volumes), causes);
        }
    }
    check_choices(pod, causes);
    for (pointer, least) in [("terminationGracePeriodSeconds", 0), ("activeDeadlineSeconds", 1)] {
        if let Some(value) = pod.int(&format!("/spec/{pointer}")).filter(|value| *value < least) {
            let detail = format!("must be greater than or equal to {least}");
            causes.push(Cause::invalid(format!("spec.{pointer}"), &json!(value), &detail));
        }
    }
    check_host_ports(pod, causes);
    check_sysctls(pod, causes);
    check_host_users(pod, causes);
    check_hostname_override(pod, causes);
    environment::check_files(pod, causes);
    tolerations::check("spec.tolerations", pod.list("/spec/tolerations"), causes);
    resize::check_policies(pod, causes);
}

/// Sysctls have a name each, of words between dots or slashes, once.
fn check_sysctls(pod: &Value, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for (index, sysctl) in pod.list("/spec/securityContext/sysctls").iter().enumerate() {
        let field = format!("spec.securityContext.sysctls[{index}].name");
        let name = sysctl.text("/name");
        if name.is_empty() {
            causes.push(Cause::required(field, ""));
        } else if !is_sysctl(name) {
            let detail = "must have at most 253 characters and consist of words of lower case \
                          alphanumeric characters, '-' or '_' between '.' or '/'";
            causes.push(Cause::invalid(field, &json!(name), detail));
        } else if !seen.insert(name.replace('/', ".")) {
            causes.push(Cause::duplicate(field, &json!(name)));
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let is_word = |word: &str| {
        let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let ends = [word.as_bytes().first(), word.as_bytes().last()];
        ends.iter().all(|end| end.is_some_and(is_plain))
            && word.bytes().all(|byte| is_plain(&byte) || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(is_word)
}

fn check_choices(pod: &Value, causes: &mut Vec<Cause>) {
    for (field, allowed) in [
        ("restartPolicy", &["Always", "OnFailure", "Never"][..]),
        ("dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"][..]),
    ] {
        let value = pod.text(&format!("/spec/{field}"));
        if !allowed.contains(&value) {
            causes.push(Cause::unsupported(format!("spec.{field}"), &json!(value), allowed));
        }
    }
    let node = pod.text("/spec/nodeName");
    if !node.is_empty() && !names::is_subdomain(node) {
        causes.push(Cause::invalid("spec.nodeName", &json!(node), "must be a DNS subdomain"));
    }
}

fn check_container(
    path: &str,
    (container, volumes): (&Value, &BTreeSet<&str>),
    causes: &mut Vec<Cause>,
) {
    names::check_label(&format!("{path}.name"), container.text("/name"), causes);
    let image = container.text("/image");
    if image.is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    }
    let policy = container.text("/imagePullPolicy");
    if !matches!(policy, "Always" | "IfNotPresent" | "Never") {
        let allowed = ["Always", "IfNotPresent", "Never"];
        causes.push(Cause::unsupported(
            format!("{path}.imagePullPolicy"),
            &json!(policy),
            &allowed,
        ));
    }
    check_ports(path, container, causes);
    environment::check_variables(path, container, causes);
    mounts::check(path, (container, volumes), causes);
    check_resources(path, container, causes);
    check_restarts(path, container, causes);
}

/// A container's own restart policy, and its rules (at most 20, each of at most 255 exit codes).
fn check_restarts(path: &str, container: &Value, causes: &mut Vec<Cause>) {
    let policy = container.text("/restartPolicy");
    if !matches!(policy, "" | "Always" | "OnFailure" | "Never") {
        let field = format!("{path}.restartPolicy");
        let allowed = ["Always", "Never", "OnFailure"];
        causes.push(Cause::unsupported(field, &json!(policy), &allowed));
    }
    let rules = container.list("/restartPolicyRules");
    if !rules.is_empty() && policy.is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        causes.push(Cause::required(format!("{path}.restartPolicy"), detail));
    }
    if rules.len() > 20 {
        let field = format!("{path}.restartPolicyRules");
        causes.push(Cause::invalid(field, &json!(rules.len()), "must have at most 20 items"));
    }
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("{path}.restartPolicyRules[{index}]");
        let choices = [
            ("action", &["Restart", "RestartAllContainers"][..]),
            ("exitCodes/operator", &["In", "NotIn"][..]),
        ];
        for (name, allowed) in choices {
            let value = rule.text(&format!("/{name}"));
            if !allowed.contains(&value) {
                let field = format!("{field}.{}", name.replace('/', "."));
                causes.push(Cause::unsupported(field, &json!(value), allowed));
            }
        }
        let codes = rule.list("/exitCodes/values").len();
        if !(1..=255).contains(&codes) {
            let field = format!("{field}.exitCodes.values");
            causes.push(Cause::invalid(field, &json!(codes), "must have 1 to 255 items"));
        }
    }
}

fn check_ports(path: &str, container: &Value, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for (index, port) in container.list("/ports").iter().enumerate() {
        let field = format!("{path}.ports[{index}]");
        objects::check_port(format!("{field}.containerPort"), port.int("/containerPort"), causes);
        if let Some(host) = port.int("/hostPort").filter(|host| *host != 0) {
            objects::check_port(format!("{field}.hostPort"), Some(host), causes);
        }
        let name = port.text("/name");
        if !name.is_empty() {
            if !names::is_port_name(name) {
                let detail = "must be a valid port name (lower case letters, digits and '-', at \
                              most 15 characters, at least one letter)";
                causes.push(Cause::invalid(format!("{field}.name"), &json!(name), detail));
            }
            if !seen.insert(name) {
                causes.push(Cause::duplicate(format!("{field}.name"), &json!(name)));
            }
        }
        check_protocol(format!("{field}.protocol"), port.text("/protocol"), causes);
    }
}

/// A protocol that must be one of the three.
pub(crate) fn check_protocol(field: String, protocol: &str, causes: &mut Vec<Cause>) {
    if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
        let allowed = ["SCTP", "TCP", "UDP"];
        causes.push(Cause::unsupported(field, &json!(protocol), &allowed));
    }
}

pub(super) fn check_resources(path: &str, container: &Value, causes: &mut Vec<Cause>) {
    let mut amount = |of: &str, resource: &str, value: &Value| {
        check_amount(&format!("{path}.resources.{of}[{resource}]"), value, causes)
    };
    let mut over = Vec::new();
    let limits = container.map("/resources/limits");
    for (resource, value) in limits.into_iter().flatten() {
        amount("limits", resource, value);
    }
    for (resource, value) in container.map("/resources/requests").into_iter().flatten() {
        let request = amount("requests", resource, value);
        let limit = limits.and_then(|limits| limits.get(resource)).and_then(Value::as_str);
        let limit_amount = limit.and_then(quantity::millis);
        if let (Some(request), Some(limit_amount)) = (request, limit_amount)
            && request > limit_amount
        {
            let detail = format!(
                "must be less than or equal to {resource} limit of {}",
                limit.unwrap_or_default()
            );
            over.push(Cause::invalid(format!("{path}.resources.requests"), value, &detail));
        }
    }
    causes.extend(over);
}

/// An amount, in thousandths, that is not negative; none and a cause for anything else.
pub(super) fn check_amount(field: &str, value: &Value, causes: &mut Vec<Cause>) -> Option<i128> {
    const FORMAT_RULE: &str = "quantities must match the regular expression \
         '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    match quantity::millis(value.as_str().unwrap_or_default()) {
        None => {
            causes.push(Cause::invalid(field, value, FORMAT_RULE));
            None
        }
        Some(amount) if amount < 0 => {
            causes.push(Cause::invalid(field, value, "must be greater than or equal to 0"));
            None
        }
        found => found,
    }
}

fn check_host_ports(pod: &Value, causes: &mut Vec<Cause>) {
    let mut taken = BTreeSet::new();
    for (index, container) in pod.list("/spec/containers").iter().enumerate() {
        for (at, port) in container.list("/ports").iter().enumerate() {
            let Some(host) = port.int("/hostPort").filter(|host| *host != 0) else { continue };
            if pod.flag("/spec/hostNetwork") && port.int("/containerPort") != Some(host) {
                let field = format!("spec.containers[{index}].ports[{at}].containerPort");
                let detail = "must match `hostPort` when `hostNetwork` is true";
                causes.push(Cause::invalid(field, &port["containerPort"], detail));
            }
            let id = (host, port.text("/protocol"), port.text("/hostIP"));
            if !taken.insert(id) {
                let field = format!("spec.containers[{index}].ports[{at}].hostPort");
                causes.push(Cause::duplicate(field, &json!(host)));
            }
        }
    }
}

/// A user namespace owns the pod's other namespaces, so none of them is the host's; without one the
/// files of procfs stay masked.
fn check_host_users(pod: &Value, causes: &mut Vec<Cause>) {
    let own_users = pod.pointer("/spec/hostUsers") == Some(&Value::Bool(false));
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if own_users && pod.flag(&format!("/spec/{field}")) {
            let detail = "when `hostUsers` is false";
            causes.push(Cause::forbidden(format!("spec.{field}"), detail));
        }
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in pod.list(&format!("/spec/{list}")).iter().enumerate() {
            let mount = container.pointer("/securityContext/procMount");
            if let Some(mount) = mount.filter(|mount| !own_users && *mount == "Unmasked") {
                let field = format!("spec.{list}[{index}].securityContext.procMount");
                let detail = "`hostUsers` must be false to use `Unmasked`";
                causes.push(Cause::invalid(field, mount, detail));
            }
        }
    }
}

/// A host name that overrides all others is a DNS subdomain that the kernel takes, and the only one
/// asked for.
fn check_hostname_override(pod: &Value, causes: &mut Vec<Cause>) {
    let field = "spec.hostnameOverride";
    let Some(name) = pod.pointer("/spec/hostnameOverride").filter(|name| !name.is_null()) else {
        return;
    };
    for other in ["setHostnameAsFQDN", "hostNetwork"] {
        if pod.flag(&format!("/spec/{other}")) {
            let detail = format!("may not be specified when {other} is true");
            causes.push(Cause::forbidden(field, &detail));
        }
    }
    let text = name.as_str().unwrap_or_default();
    if text.len() > 64 {
        causes.push(Cause::invalid(field, name, "may not be more than 64 bytes"));
    }
    if !names::is_subdomain(text) {
        causes.push(Cause::invalid(field, name, "must be a DNS subdomain"));
    }
}

/// Checks what changed of an existing pod.
pub(crate) fn check_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let mut allowed = wanted.clone();
    for list in ["containers", "initContainers"] {
        let pointer = format!("/spec/{list}");
        for (index, container) in wanted.list(&pointer).iter().enumerate() {
            if container.text("/image").is_empty() {
                causes.push(Cause::required(format!("spec.{list}[{index}].image"), ""));
            }
        }
        let before = current.list(&pointer);
        for (container, before) in allowed.list_mut(&pointer).iter_mut().zip(before) {
            container.put("/image", before["image"].clone());
        }
    }
    check_deadline(current, wanted, causes);
    restore(&mut allowed, current, "/spec/activeDeadlineSeconds");
    let kept = current
        .list("/spec/tolerations")
        .iter()
        .all(|one| wanted.list("/spec/tolerations").contains(one));
    if kept {
        restore(&mut allowed, current, "/spec/tolerations");
    } else {
        causes.push(Cause::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let grace = "/spec/terminationGracePeriodSeconds";
    if current.int(grace).is_some_and(|before| before < 0) && wanted.int(grace) == Some(1) {
        restore(&mut allowed, current, grace);
    }
    if wanted.pointer("/spec/tolerations") != current.pointer("/spec/tolerations") {
        tolerations::check("spec.tolerations", wanted.list("/spec/tolerations"), causes);
    }
    if allowed.get("spec") != current.get("spec") {
        let changed = changed_fields(current, &allowed).join(", ");
        causes.push(Cause::forbidden("spec", &format!("{UPDATE_RULE}\nchanged: {changed}\n")));
    }
}

/// Gives `object` at a pointer what `from` has there.
pub(super) fn restore(object: &mut Value, from: &Value, pointer: &str) {
    match from.pointer(pointer) {
        Some(value) => object.put(pointer, value.clone()),
        None => {
            object.take_out(pointer);
        }
    }
}

fn check_deadline(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let pointer = "/spec/activeDeadlineSeconds";
    let field = "spec.activeDeadlineSeconds";
    match (current.int(pointer), wanted.int(pointer)) {
        (Some(_), None) => causes.push(Cause::invalid(
            field,
            &Value::Null,
            "must not update from a positive integer to nil value",
        )),
        (Some(before), Some(now)) if now > before => causes.push(Cause::invalid(
            field,
            &json!(now),
            "must be less than or equal to previous value",
        )),
        _ => {}
    }
}

fn changed_fields(current: &Value, wanted: &Value) -> Vec<String> {
    let empty = serde_json::Map::new();
    let before = current.map("/spec").unwrap_or(&empty);
    let after = wanted.map("/spec").unwrap_or(&empty);
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| format!("spec.{key}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::defaults;
    use crate::resource::Kind;

    fn pod() -> Value {
        let mut pod = json!({"metadata": {"name": "x"}, "spec": {"containers": [
            {"name": "a", "image": "web:1"}]}});
        defaults(Kind::Pod, &mut pod);
        pod
    }

    fn problems(pod: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        check(pod, &mut causes);
        causes
    }

    #[test]
    fn a_plain_pod_is_good_and_an_empty_one_is_not() {
        assert_eq!(problems(&pod()), []);
        let mut empty = json!({"spec": {"containers": []}});
        defaults(Kind::Pod, &mut empty);
        assert_eq!(problems(&empty), [Cause::required("spec.containers", "")]);
    }

    #[test]
    fn a_template_may_leave_the_image_open_and_a_pod_may_not() {
        let mut blank = pod();
        blank["spec"]["containers"][0]["image"] = json!(" ");
        let detail = "must not have leading or trailing whitespace";
        let field = "spec.containers[0].image";
        assert_eq!(problems(&blank), [Cause::invalid(field, &json!(" "), detail)]);
        let mut causes = Vec::new();
        check_template(&blank, &mut causes);
        assert_eq!(causes, []);
        blank.put("/metadata/labels", json!({"a b": "c"}));
        blank["spec"]["ephemeralContainers"] = json!([{"name": "e"}]);
        blank["spec"]["containers"][0]["name"] = json!("A");
        check_template(&blank, &mut causes);
        let found: Vec<String> =
            causes.into_iter().map(|one| one.within("template").line()).collect();
        assert!(found[0].starts_with("template.labels: Invalid value: \"a b\""), "{found:?}");
        assert!(found[1].starts_with("template.spec.containers[0].name: Invalid"), "{found:?}");
        assert!(
            found[2].ends_with("ephemeral containers not allowed in pod template"),
            "{found:?}"
        );
    }

    #[test]
    fn sysctls_have_a_name_each() {
        let mut pod = pod();
        let names = ["kernel.shmmax", "net/ipv4/tcp_syncookies", "foo-", "bar..", "", "net.ipv4.a"];
        let mut sysctls: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        sysctls.push(json!({"name": "kernel/shmmax"}));
        pod.put("/spec/securityContext", json!({"sysctls": sysctls}));
        let found = problems(&pod);
        assert_eq!(found.len(), 4, "{found:?}");
        for (cause, index) in found.iter().zip([2, 3, 4, 6]) {
            let field = format!("spec.securityContext.sysctls[{index}].name");
            assert!(format!("{cause:?}").contains(&field), "{cause:?}");
        }
    }

    #[test]
    fn bad_containers_are_named_by_their_place() {
        let mut bad = pod();
        bad["spec"]["containers"][0]["resources"] =
            json!({"limits": {"memory": "x", "cpu": "1"}, "requests": {"cpu": "2"}});
        bad["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/a"}]);
        assert_eq!(problems(&bad).len(), 3);
    }

    #[test]
    fn a_user_namespace_goes_with_no_namespace_of_the_host_and_unmasked_only_with_it() {
        let mut bad = pod();
        bad["spec"]["hostUsers"] = json!(false);
        bad["spec"]["containers"][0]["securityContext"] = json!({"procMount": "Unmasked"});
        assert_eq!(problems(&bad), []);
        for field in ["hostPID", "hostIPC"] {
            bad["spec"][field] = json!(true);
        }
        assert_eq!(problems(&bad).len(), 2);
        let mut bad = pod();
        bad["spec"]["containers"][0]["securityContext"] = json!({"procMount": "Unmasked"});
        assert_eq!(problems(&bad).len(), 1);
    }

    #[test]
    fn a_host_name_that_overrides_all_others_is_the_only_one() {
        let found = |fields: Value| {
            let mut pod = pod();
            for (field, value) in fields.as_object().into_iter().flatten() {
                pod["spec"][field] = value.clone();
            }
            problems(&pod)
        };
        let field = "spec.hostnameOverride";
        let forbidden =
            |with| Cause::forbidden(field, &format!("may not be specified when {with} is true"));
        assert_eq!(found(json!({"hostnameOverride": "a.b"})), []);
        let both = json!({"hostnameOverride": "a", "setHostnameAsFQDN": true});
        assert_eq!(found(both), [forbidden("setHostnameAsFQDN")]);
        let both = json!({"hostnameOverride": "a", "hostNetwork": true});
        assert_eq!(found(both), [forbidden("hostNetwork")]);
        let long = "a".repeat(65);
        let too_long = Cause::invalid(field, &json!(long), "may not be more than 64 bytes");
        assert_eq!(found(json!({"hostnameOverride": long})), [too_long]);
        let bad = Cause::invalid(field, &json!("A_"), "must be a DNS subdomain");
        assert_eq!(found(json!({"hostnameOverride": "A_"})), [bad]);
    }

    #[test]
    fn only_images_deadlines_and_more_tolerations_may_change() {
        let check = |change: &dyn Fn(&mut Value)| {
            let mut wanted = pod();
            change(&mut wanted);
            let mut causes = Vec::new();
            check_update(&pod(), &wanted, &mut causes);
            causes.len()
        };
        assert_eq!(check(&|p| p["spec"]["containers"][0]["image"] = json!("web:2")), 0);
        assert_eq!(check(&|p| p["spec"]["activeDeadlineSeconds"] = json!(9)), 0);
        assert_eq!(check(&|p| p["spec"]["containers"][0]["args"] = json!(["x"])), 1);
        assert_eq!(check(&|p| p["spec"]["nodeName"] = json!("n")), 1);
        assert_eq!(check(&|p| p["spec"]["tolerations"] = json!([])), 2);
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let of = |resources: Value| {
            qos_class(&json!({"spec": {"containers": [{"resources": resources}]}}))
        };
        assert_eq!(of(json!({})), "BestEffort");
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(of(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(
            of(json!({"limits": {"cpu": "1", "memory": "1Gi"},
            "requests": {"cpu": "1000m", "memory": "1024Mi"}})),
            "Guaranteed"
        );
    }
}
