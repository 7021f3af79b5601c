//! The containers of a pod and what each is to it: who runs before whom, and who runs again.
//!
//! Pure. Restart policies of the pod and of single containers, and the rules on exit codes
//! (KEP-753 sidecars, KEP-5307 container restart rules, KEP-5532 restart of all containers).

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, EphemeralContainer, Pod};

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An init container that has to succeed before the next container starts.
    Init,
    /// An init container that runs beside all that follow: `restartPolicy: Always`.
    Sidecar,
    /// An app container.
    App,
    /// An ephemeral container, started into a pod that is there already.
    Ephemeral,
}

/// What follows from the end of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// It stays ended.
    Stay,
    /// It runs again.
    Restart,
    /// All containers of the pod run again, from the first.
    RestartAll,
}

/// The reason under which a run is remembered that a restart of all containers took away.
pub const RESTARTING_ALL: &str = "RestartingAllContainers";

/// The pod's init containers, sidecars included.
pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

/// The pod's app containers.
pub fn app_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |s| &s.containers)
}

/// The pod's ephemeral containers.
pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default()
}

/// What an entry of the init containers is.
pub fn role_of_init(container: &Container) -> Role {
    match container.restart_policy.as_deref() {
        Some("Always") => Role::Sidecar,
        _ => Role::Init,
    }
}

/// Init and app containers with their roles, in the order in which they start.
pub fn lasting(pod: &Pod) -> impl DoubleEndedIterator<Item = (Role, &Container)> + Clone {
    let inits = init_containers(pod).iter().map(|c| (role_of_init(c), c));
    inits.chain(app_containers(pod).iter().map(|c| (Role::App, c)))
}

/// The names of all containers.
pub fn names(pod: &Pod) -> impl Iterator<Item = &str> + Clone {
    let lasting = lasting(pod).map(|(_, c)| c.name.as_str());
    lasting.chain(ephemeral_containers(pod).iter().map(|c| c.name.as_str()))
}

/// The container `name` with its role.
pub fn find<'a>(pod: &'a Pod, name: &str) -> Option<(Role, Cow<'a, Container>)> {
    if let Some((role, container)) = lasting(pod).find(|(_, c)| c.name == name) {
        return Some((role, Cow::Borrowed(container)));
    }
    let ephemeral = ephemeral_containers(pod).iter().find(|c| c.name == name)?;
    Some((Role::Ephemeral, Cow::Owned(as_container(ephemeral))))
}

/// An ephemeral container in the form of the others; what it targets is not part of that.
pub fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let from = ephemeral.clone();
    Container {
        args: from.args,
        command: from.command,
        env: from.env,
        env_from: from.env_from,
        image: from.image,
        image_pull_policy: from.image_pull_policy,
        lifecycle: from.lifecycle,
        liveness_probe: from.liveness_probe,
        name: from.name,
        ports: from.ports,
        readiness_probe: from.readiness_probe,
        resize_policy: from.resize_policy,
        resources: from.resources,
        restart_policy: from.restart_policy,
        restart_policy_rules: from.restart_policy_rules,
        security_context: from.security_context,
        startup_probe: from.startup_probe,
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        termination_message_path: from.termination_message_path,
        termination_message_policy: from.termination_message_policy,
        tty: from.tty,
        volume_devices: from.volume_devices,
        volume_mounts: from.volume_mounts,
        working_dir: from.working_dir,
    }
}

/// How containers are restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Always.
    Always,
    /// After a failure.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    /// The pod's policy.
    pub fn of(pod: &Pod) -> Self {
        Self::parse(pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()))
    }

    /// The policy that `container` is under: its own, else the pod's.
    pub fn of_container(pod: &Pod, container: &Container) -> Self {
        match container.restart_policy.as_deref() {
            Some(own) => Self::parse(Some(own)),
            None => Self::of(pod),
        }
    }

    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether an app container that ended with `exit_code` runs again.
    fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// What follows when `container` ends with `exit_code` while its pod is meant to run.
pub fn ruling(pod: &Pod, (role, container): (Role, &Container), exit_code: i32) -> Ruling {
    let rule = matching_rule(container, exit_code).map(|rule| rule.action.as_str());
    let by_policy = || match RestartPolicy::of_container(pod, container).restarts(exit_code) {
        true => Ruling::Restart,
        false => Ruling::Stay,
    };
    match (role, rule) {
        (Role::Ephemeral, _) => Ruling::Stay,
        (_, Some("RestartAllContainers")) => Ruling::RestartAll,
        (Role::Sidecar, _) => Ruling::Restart,
        // An init container that has succeeded is through, whatever its rules.
        (Role::Init, _) if exit_code == 0 => Ruling::Stay,
        (_, Some("Restart")) => Ruling::Restart,
        _ => by_policy(),
    }
}

/// The first rule of a container that speaks of `exit_code`.
fn matching_rule(container: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let named = codes.values.iter().flatten().any(|code| *code == exit_code);
            match codes.operator.as_str() {
                "In" => named,
                "NotIn" => !named,
                _ => false,
            }
        })
    })
}

/// Whether a container of the pod can bring about a restart of all.
pub fn may_restart_all(pod: &Pod) -> bool {
    lasting(pod).any(|(_, container)| {
        let rules = container.restart_policy_rules.iter().flatten();
        rules.into_iter().any(|rule| rule.action == "RestartAllContainers")
    })
}

/// Whether the pod has sidecars.
pub fn has_sidecars(pod: &Pod) -> bool {
    init_containers(pod).iter().any(|c| role_of_init(c) == Role::Sidecar)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(policy: &str, container: Value) -> Pod {
        let mut container = container;
        container["name"] = json!("c");
        serde_json::from_value(
            json!({"metadata": {}, "spec": {"restartPolicy": policy, "containers": [container]}}),
        )
        .unwrap()
    }

    #[test]
    fn a_policy_of_the_container_goes_before_that_of_the_pod_and_a_rule_before_both() {
        let rule = |action: &str, operator: &str, values: &[i32]| json!([{"action": action, "exitCodes": {"operator": operator, "values": values}}]);
        for (policy, own, rules, code, expected) in [
            ("Always", None, json!(null), 0, Ruling::Restart),
            ("OnFailure", None, json!(null), 0, Ruling::Stay),
            ("OnFailure", None, json!(null), 1, Ruling::Restart),
            ("Never", None, json!(null), 1, Ruling::Stay),
            ("Never", Some("Always"), json!(null), 0, Ruling::Restart),
            ("Never", Some("OnFailure"), json!(null), 0, Ruling::Stay),
            ("Never", Some("OnFailure"), json!(null), 7, Ruling::Restart),
            ("Always", Some("Never"), json!(null), 7, Ruling::Stay),
            ("Always", Some("Never"), rule("Restart", "In", &[42]), 42, Ruling::Restart),
            ("Always", Some("Never"), rule("Restart", "In", &[42]), 1, Ruling::Stay),
            ("Always", Some("Never"), rule("Restart", "NotIn", &[42]), 1, Ruling::Restart),
            ("Always", Some("Never"), rule("Restart", "NotIn", &[42]), 42, Ruling::Stay),
            (
                "Never",
                Some("Never"),
                rule("RestartAllContainers", "In", &[3]),
                3,
                Ruling::RestartAll,
            ),
        ] {
            let pod = pod(policy, json!({"restartPolicy": own, "restartPolicyRules": rules}));
            let found = ruling(&pod, (Role::App, &app_containers(&pod)[0]), code);
            assert_eq!(found, expected, "{policy} {own:?} {rules} {code}");
        }
    }

    #[test]
    fn an_init_container_that_succeeds_is_through_and_a_sidecar_never_is() {
        let always = pod("Always", json!({}));
        let container = &app_containers(&always)[0];
        assert_eq!(ruling(&always, (Role::Init, container), 0), Ruling::Stay);
        assert_eq!(ruling(&always, (Role::Init, container), 1), Ruling::Restart);
        let never = pod("Never", json!({}));
        let container = &app_containers(&never)[0];
        assert_eq!(ruling(&never, (Role::Init, container), 1), Ruling::Stay);
        assert_eq!(ruling(&never, (Role::Sidecar, container), 0), Ruling::Restart);
        assert_eq!(ruling(&never, (Role::Ephemeral, container), 1), Ruling::Stay);
    }
}
