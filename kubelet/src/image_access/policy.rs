//! When it is asked at all who may use an image (`imagePullCredentialsVerificationPolicy`).

use crate::image_policy::repository_of;

/// When it is asked who may use an image that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verification {
    /// `NeverVerify`.
    Never,
    /// `NeverVerifyPreloadedImages`: of what was pulled for pods.
    #[default]
    Pulled,
    /// `NeverVerifyAllowlistedImages`: of all but these.
    Unlisted(Vec<Allowed>),
    /// `AlwaysVerify`.
    Always,
}

impl Verification {
    /// Whether it is asked; `is_ours` tells that it was pulled for a pod.
    pub(super) fn is_due(&self, reference: &str, is_ours: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Pulled => is_ours,
            Self::Unlisted(all) => {
                let repository = repository_of(reference);
                !all.iter().any(|allowed| allowed.covers(&repository))
            }
            Self::Always => true,
        }
    }
}

/// Images that all pods may use (`preloadedImagesVerificationAllowlist`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// Those of one repository.
    Repository(String),
    /// Those whose repositories begin so, up to a slash.
    Below(String),
}

impl Allowed {
    /// Reads `registry/repository`, or `registry/*` for all below.
    ///
    /// # Errors
    /// In words, when it is neither.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        if pattern != pattern.trim() {
            return Err(format!("leading/trailing spaces are not allowed: {pattern}"));
        }
        let (text, is_below) = match pattern.strip_suffix('*') {
            Some(text) if text.ends_with('/') => (text, true),
            _ => (pattern, false),
        };
        if text.is_empty() {
            return Err(format!("the supplied pattern is too short: {pattern}"));
        }
        if text.contains('*') {
            return Err(format!(
                "not a valid wildcard pattern, only patterns ending with '/*' are allowed: {pattern}"
            ));
        }
        match is_below {
            true if text == "/" => Err("at least registry hostname is required".to_owned()),
            true => Ok(Self::Below(text.to_owned())),
            false if repository_of(text) != text => Err(format!(
                "not a whole name of a repository, with its registry and without tag or digest: {pattern}"
            )),
            false => Ok(Self::Repository(text.to_owned())),
        }
    }

    fn covers(&self, repository: &str) -> bool {
        match self {
            Self::Repository(name) => repository == name,
            Self::Below(prefix) => repository.starts_with(prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_is_whole_names_and_all_below_a_slash() {
        let parse = |pattern: &str| Allowed::parse(pattern).unwrap();
        let listed = ["r.example/app", "r.example/team/*", "docker.io/library/busybox"];
        let verification = Verification::Unlisted(listed.map(parse).into());
        for (reference, is_due) in [
            ("r.example/app:1", false),
            ("r.example/app@sha256:abc", false),
            ("r.example/apps", true),
            ("r.example/app/x", true),
            ("r.example/team/a:1", false),
            ("r.example/team", true),
            ("r.example/teams/a", true),
            ("busybox", false),
            ("evil.example/busybox", true),
        ] {
            assert_eq!(verification.is_due(reference, false), is_due, "{reference}");
        }
        for bad in ["", "*", "/*", " a", "r.example/a*", "r.*/a", "busybox", "r.example/a:1"] {
            assert!(Allowed::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_was_brought_by_hand_is_asked_about_only_where_all_is() {
        for (verification, of_ours, of_others) in [
            (Verification::Never, false, false),
            (Verification::Pulled, true, false),
            (Verification::Unlisted(Vec::new()), true, true),
            (Verification::Always, true, true),
        ] {
            assert_eq!(verification.is_due("a", true), of_ours);
            assert_eq!(verification.is_due("a", false), of_others);
        }
    }
}
