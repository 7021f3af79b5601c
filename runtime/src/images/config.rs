//! Image configurations: what an image asks for, kept apart from what the host decides.
//!
//! Everything an image says about running it is [`Untrusted`]: a host decision needs a validator.
//! Labels are dropped at the parser, so nothing in the program can act on one (CVE-2026-53488).
//! Volumes are dropped too. `Differs:` from containerd, which makes an anonymous volume a path; here
//! such a path is part of the writable layer.

use serde::Deserialize;

use super::digest::Digest;
use super::manifest::Invalid;

/// A value that came with an image. It can be taken out through a validator only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Untrusted<T>(T);

impl<T> Untrusted<T> {
    /// Marks a value.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// What a validator makes of the value.
    ///
    /// # Errors
    /// The validator's.
    pub fn validate<U, E>(self, validator: impl FnOnce(T) -> Result<U, E>) -> Result<U, E> {
        validator(self.0)
    }
}

/// A checked image configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// The layers' diff ids, bottom first.
    pub diff_ids: Vec<Digest>,
    /// `USER`.
    pub user: Untrusted<String>,
    /// `ENTRYPOINT`.
    pub entrypoint: Untrusted<Vec<String>>,
    /// `CMD`.
    pub cmd: Untrusted<Vec<String>>,
    /// `ENV`, as `NAME=value`.
    pub env: Untrusted<Vec<String>>,
    /// `WORKDIR`.
    pub working_dir: Untrusted<String>,
    /// `STOPSIGNAL`.
    pub stop_signal: Untrusted<String>,
}

#[derive(Deserialize)]
struct RawImage {
    rootfs: RawRootfs,
    config: Option<RawConfig>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    user: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

impl ImageConfig {
    /// Parses a configuration.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let raw: RawImage = serde_json::from_slice(bytes)?;
        if raw.rootfs.kind != "layers" {
            return Err(Invalid::Shape(format!("rootfs type {:?}", raw.rootfs.kind)));
        }
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        let diff_ids = diff_ids.into_iter().map(Digest::try_from).collect::<Result<_, _>>()?;
        let config = raw.config.unwrap_or_default();
        Ok(Self {
            diff_ids,
            user: Untrusted(config.user.unwrap_or_default()),
            entrypoint: Untrusted(config.entrypoint.unwrap_or_default()),
            cmd: Untrusted(config.cmd.unwrap_or_default()),
            env: Untrusted(config.env.unwrap_or_default()),
            working_dir: Untrusted(config.working_dir.unwrap_or_default()),
            stop_signal: Untrusted(config.stop_signal.unwrap_or_default()),
        })
    }
}

/// A user as an image may name it: short and printable; who it is, only the container's own files
/// tell.
///
/// # Errors
/// What is wrong with it.
pub fn printable_user(user: String) -> Result<String, String> {
    if user.len() > 256 || user.chars().any(|c| c.is_control() || c.is_whitespace()) {
        let shown: String = user.chars().take(64).collect();
        return Err(format!("invalid user {shown:?} in the image's configuration"));
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_configuration_with_nulls_and_unknown_fields_is_read() {
        let body = format!(
            r#"{{"architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{HEX}"]}},
            "config":{{"User":"www","Entrypoint":null,"Cmd":["a"],"Labels":{{"io.kubernetes.x":"y"}}}}}}"#
        );
        let config = ImageConfig::parse(body.as_bytes()).unwrap();
        assert_eq!(config.diff_ids.len(), 1);
        assert_eq!(config.cmd.validate(Ok::<_, ()>), Ok(vec!["a".to_owned()]));
        assert_eq!(config.user.validate(printable_user), Ok("www".to_owned()));
    }

    #[test]
    fn a_bad_diff_id_or_rootfs_type_is_refused() {
        for body in [
            r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../x"]}}"#,
            r#"{"rootfs":{"type":"other","diff_ids":[]}}"#,
            r#"{"config":{}}"#,
            "[]",
        ] {
            assert!(ImageConfig::parse(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_user_with_control_bytes_is_refused() {
        assert!(printable_user("a\nb".into()).is_err());
        assert!(printable_user("1000:1000".into()).is_ok());
    }
}
