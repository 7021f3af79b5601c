//! A container's security settings: pod and container level merged, upstream's checks applied.
//!
//! Serves the security-context rules, and the rule that a Localhost seccomp profile which cannot be
//! used stops the container (CVE-2023-2431): nothing here falls back to less confinement.

use std::path::{Component, Path, PathBuf};

use berth_runtime::interface::{
    ContainerConfig, Image, SeLinuxOptions, Seccomp, Security, SupplementalGroupsPolicy,
};
use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};

use super::{ConfigError, NodeFacts, pod_in_messages};
use crate::admission::app_armor;

/// Merges the pod's and the container's security context; the container's fields win.
pub fn security(
    pod: &Pod,
    container: &Container,
    image: &Image,
    node: &NodeFacts,
) -> Result<Security, ConfigError> {
    let default_pod = PodSecurityContext::default();
    let default_own = SecurityContext::default();
    let spec = pod.spec.as_ref();
    let of_pod = spec.and_then(|spec| spec.security_context.as_ref()).unwrap_or(&default_pod);
    let own = container.security_context.as_ref().unwrap_or(&default_own);
    let user = own.run_as_user.or(of_pod.run_as_user);
    let group = own.run_as_group.or(of_pod.run_as_group);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        verify_non_root(user, image, pod, container)?;
    }
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.as_ref();
    Ok(Security {
        privileged,
        run_as_user: user.map(|id| checked_id("runAsUser", id)).transpose()?,
        run_as_group: group.map(|id| checked_id("runAsGroup", id)).transpose()?,
        supplemental_groups: supplemental_groups(of_pod)?,
        supplemental_groups_policy: groups_policy(of_pod)?,
        add_capabilities: capability_names(capabilities.and_then(|c| c.add.as_ref())),
        drop_capabilities: capability_names(capabilities.and_then(|c| c.drop.as_ref())),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        read_only_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        seccomp: match privileged {
            true => Seccomp::Unconfined,
            false => {
                seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()), node)?
            }
        },
        unmasked_proc: match own.proc_mount.as_deref() {
            None | Some("" | "Default") => false,
            Some("Unmasked") => true,
            Some(other) => return Err(invalid("procMount", other)),
        },
        app_armor: app_armor(pod, container)?,
        selinux: selinux(of_pod.se_linux_options.as_ref(), own.se_linux_options.as_ref()),
    })
}

/// The container's options take the pod's place as a whole. Differs: a container without a level has the
/// pod's all the same, so that it shares the pod's volumes; upstream's runtimes make up another one.
fn selinux(of_pod: Option<&SELinuxOptions>, own: Option<&SELinuxOptions>) -> SeLinuxOptions {
    let Some(asked) = own.or(of_pod) else { return SeLinuxOptions::default() };
    let given = |part: &Option<String>| part.clone().filter(|part| !part.is_empty());
    SeLinuxOptions {
        user: given(&asked.user),
        role: given(&asked.role),
        kind: given(&asked.type_),
        level: given(&asked.level).or_else(|| given(&of_pod?.level)),
    }
}

fn invalid(field: &'static str, value: &str) -> ConfigError {
    ConfigError::InvalidValue { field, value: value.to_owned() }
}

fn checked_id(field: &'static str, value: i64) -> Result<u32, ConfigError> {
    match i32::try_from(value) {
        Ok(id) if id >= 0 => Ok(id.unsigned_abs()),
        _ => Err(ConfigError::InvalidId { field, value }),
    }
}

fn supplemental_groups(context: &PodSecurityContext) -> Result<Vec<u32>, ConfigError> {
    let fs_group = context.fs_group.iter().map(|id| checked_id("fsGroup", *id));
    let named = context.supplemental_groups.iter().flatten();
    fs_group.chain(named.map(|id| checked_id("supplementalGroups", *id))).collect()
}

fn groups_policy(context: &PodSecurityContext) -> Result<SupplementalGroupsPolicy, ConfigError> {
    match context.supplemental_groups_policy.as_deref() {
        None | Some("" | "Merge") => Ok(SupplementalGroupsPolicy::Merge),
        Some("Strict") => Ok(SupplementalGroupsPolicy::Strict),
        Some(other) => Err(invalid("supplementalGroupsPolicy", other)),
    }
}

fn capability_names(names: Option<&Vec<String>>) -> Vec<String> {
    let bare = |name: &String| {
        let upper = name.to_ascii_uppercase();
        upper.strip_prefix("CAP_").map(str::to_owned).unwrap_or(upper)
    };
    names.into_iter().flatten().map(bare).collect()
}

/// Refuses a container that would run as root, or might, though it must not.
fn verify_non_root(
    user: Option<i64>,
    image: &Image,
    pod: &Pod,
    container: &Container,
) -> Result<(), ConfigError> {
    let place = format!("(pod: {:?}, container: {})", pod_in_messages(pod), container.name);
    let refuse = |text: String| Err(ConfigError::NonRoot(format!("{text} {place}")));
    match user {
        Some(0) => return refuse("container's runAsUser breaks non-root policy".into()),
        Some(_) => return Ok(()),
        None => {}
    }
    let image_user = image.user.split(':').next().unwrap_or_default();
    match image_user.parse::<i64>() {
        Ok(0) => refuse("container has runAsNonRoot and image will run as root".into()),
        Ok(id) if i32::try_from(id).is_ok() && id > 0 => Ok(()),
        Ok(id) => {
            refuse(format!("container has runAsNonRoot and image has an invalid user id ({id})"))
        }
        Err(_) if image_user.is_empty() => {
            refuse("container has runAsNonRoot and image will run as root".into())
        }
        Err(_) => refuse(format!(
            "container has runAsNonRoot and image has non-numeric user ({image_user}), \
             cannot verify user is non-root"
        )),
    }
}

fn seccomp(profile: Option<&SeccompProfile>, node: &NodeFacts) -> Result<Seccomp, ConfigError> {
    let Some(profile) = profile else {
        return Ok(match node.seccomp_default {
            true => Seccomp::RuntimeDefault,
            false => Seccomp::Unconfined,
        });
    };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => localhost_profile(profile.localhost_profile.as_deref(), &node.seccomp_root)
            .map(Seccomp::Localhost),
        other => Err(invalid("seccompProfile.type", other)),
    }
}

fn localhost_profile(profile: Option<&str>, root: &Path) -> Result<PathBuf, ConfigError> {
    let name = profile.unwrap_or_default();
    if name.is_empty() {
        return Err(ConfigError::Seccomp(
            "localhostProfile must be set if seccompProfile type is Localhost.".into(),
        ));
    }
    let relative = Path::new(name);
    let plain = |component| matches!(component, Component::Normal(_));
    if !relative.components().all(plain) || name.contains('\0') {
        return Err(ConfigError::Seccomp(format!(
            "localhostProfile {name:?} must be a relative path without \"..\""
        )));
    }
    Ok(root.join(relative))
}

/// Checks that the Localhost profile of a container is a file with something in it. Reads the file
/// system; the runtime reads the profile again and fails closed too.
pub fn check_seccomp_profile(config: &ContainerConfig) -> Result<(), ConfigError> {
    let Seccomp::Localhost(path) = &config.security.seccomp else {
        return Ok(());
    };
    let refuse = |why: String| {
        let text = format!("cannot load seccomp profile {:?}: {why}", path.display());
        Err(ConfigError::Seccomp(text))
    };
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => refuse("not a regular file".into()),
        Ok(metadata) if metadata.len() == 0 => refuse("the file is empty".into()),
        Ok(_) => Ok(()),
        Err(error) => refuse(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_selinux_options_are_instead_of_the_pods_but_for_the_level() {
        let options = |kind: &str, level: &str| SELinuxOptions {
            type_: Some(kind.to_owned()),
            level: Some(level.to_owned()),
            user: Some("u".to_owned()).filter(|_| kind == "pods"),
            role: None,
        };
        let told = |of_pod: Option<&SELinuxOptions>, own: Option<&SELinuxOptions>| {
            let SeLinuxOptions { user, kind, level, .. } = selinux(of_pod, own);
            [user, kind, level].map(Option::unwrap_or_default).join(" ")
        };
        let pods = options("pods", "s0:c1");
        assert_eq!(told(None, None), "  ");
        assert_eq!(told(Some(&pods), None), "u pods s0:c1");
        assert_eq!(told(Some(&pods), Some(&options("own", "s0:c2"))), " own s0:c2");
        assert_eq!(told(Some(&pods), Some(&options("own", ""))), " own s0:c1");
        assert_eq!(told(None, Some(&options("", ""))), "  ");
    }
}
