//! When to pull an image, what to say about it, and which credentials to offer.
//!
//! Pure decisions over the pod, the image store's answer and the fetched pull secrets. Pulling,
//! back-off and events are the pod worker's.

use berth_runtime::interface::Image;
use k8s_openapi::api::core::v1::Container;

mod credentials;

pub use credentials::{Key, Keyring, SecretName, repository_of};

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry each time.
    Always,
    /// Pull what is missing.
    IfNotPresent,
    /// Use what is there or fail.
    Never,
}

impl PullPolicy {
    /// A container's policy; one that has none follows its tag (`latest` or none is `Always`).
    pub fn of(container: &Container) -> Self {
        let image = container.image.as_deref().unwrap_or_default();
        Self::parse(container.image_pull_policy.as_deref(), image)
    }

    /// The policy that is asked for, or that the reference stands for.
    pub fn parse(policy: Option<&str>, reference: &str) -> Self {
        match policy {
            Some("Always") => Self::Always,
            Some("IfNotPresent") => Self::IfNotPresent,
            Some("Never") => Self::Never,
            _ => Self::by_tag(reference),
        }
    }

    fn by_tag(reference: &str) -> Self {
        let (name, digest) = match reference.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (reference, None),
        };
        let last = name.rsplit('/').next().unwrap_or_default();
        match (last.split_once(':'), digest) {
            (Some((_, "latest")), _) | (None, None) => Self::Always,
            _ => Self::IfNotPresent,
        }
    }
}

/// What to do about a container's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageAction {
    /// Use the image that is there.
    Use,
    /// Pull it.
    Pull,
    /// Fail with `ErrImageNeverPull` and this message.
    NeverPull(String),
}

/// Decides by the policy and by whether the store has the image.
pub fn decide(reference: &str, policy: PullPolicy, present: Option<&Image>) -> ImageAction {
    match (policy, present) {
        (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => ImageAction::Pull,
        (PullPolicy::IfNotPresent | PullPolicy::Never, Some(_)) => ImageAction::Use,
        (PullPolicy::Never, None) => ImageAction::NeverPull(never_message(reference)),
    }
}

/// The waiting reason of a container whose image must not be pulled and is not there.
pub const NEVER_PULL_REASON: &str = "ErrImageNeverPull";
/// The waiting reason after a failed pull.
pub const PULL_FAILED_REASON: &str = "ErrImagePull";
/// The waiting reason until the next try.
pub const BACK_OFF_REASON: &str = "ImagePullBackOff";
/// The waiting reason of a reference that is none.
pub const INVALID_NAME_REASON: &str = "InvalidImageName";

/// What is said of an image that must not be pulled and is not there, or not for this pod.
pub fn never_message(reference: &str) -> String {
    format!("Container image {reference:?} is not present with pull policy of Never")
}

/// The message of the `Pulled` event for an image that was there.
pub fn present_message(reference: &str) -> String {
    format!(
        "Container image {reference:?} already present on machine and can be accessed by the pod"
    )
}

/// The message of the `Pulling` event.
pub fn pulling_message(reference: &str) -> String {
    format!("Pulling image {reference:?}")
}

/// The message of `BackOff` events and of the `ImagePullBackOff` state.
pub fn back_off_message(reference: &str) -> String {
    format!("Back-off pulling image {reference:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_decides_where_no_policy_is_set() {
        for (reference, expected) in [
            ("busybox", PullPolicy::Always),
            ("busybox:latest", PullPolicy::Always),
            ("busybox:1.36", PullPolicy::IfNotPresent),
            ("registry:5000/busybox", PullPolicy::Always),
            ("registry:5000/busybox:1", PullPolicy::IfNotPresent),
            ("busybox@sha256:abc", PullPolicy::IfNotPresent),
            ("busybox:latest@sha256:abc", PullPolicy::Always),
        ] {
            let mut container =
                Container { image: Some(reference.to_owned()), ..Container::default() };
            assert_eq!(PullPolicy::of(&container), expected, "{reference}");
            container.image_pull_policy = Some("Never".into());
            assert_eq!(PullPolicy::of(&container), PullPolicy::Never);
        }
    }

    #[test]
    fn decisions_follow_policy_and_presence() {
        let image = Image {
            id: format!("sha256:{}", "0".repeat(64)).try_into().unwrap(),
            tags: vec![],
            digests: vec![],
            size_bytes: 0,
            user: String::new(),
            pinned: false,
        };
        let there = Some(&image);
        assert_eq!(decide("x", PullPolicy::Always, there), ImageAction::Pull);
        assert_eq!(decide("x", PullPolicy::IfNotPresent, there), ImageAction::Use);
        assert_eq!(decide("x", PullPolicy::IfNotPresent, None), ImageAction::Pull);
        assert_eq!(decide("x", PullPolicy::Never, there), ImageAction::Use);
        assert_eq!(
            decide("x", PullPolicy::Never, None),
            ImageAction::NeverPull(
                "Container image \"x\" is not present with pull policy of Never".into()
            )
        );
    }
}
