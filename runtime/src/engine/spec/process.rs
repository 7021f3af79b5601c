//! What a container runs: command, environment, directory and privileges of its first process.

use std::collections::HashSet;
use std::path::PathBuf;

use oci_spec::runtime::{Capability, LinuxCapabilities, Process};

use crate::images::config::Untrusted;
use crate::interface::ContainerConfig;

/// What the image says of the process.
pub(super) struct Image {
    pub(super) entrypoint: Untrusted<Vec<String>>,
    pub(super) cmd: Untrusted<Vec<String>>,
    pub(super) env: Untrusted<Vec<String>>,
    pub(super) working_dir: Untrusted<String>,
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn plan(
    config: &ContainerConfig,
    hostname: &str,
    image: Image,
    capabilities: &HashSet<Capability>,
) -> Result<Process, String> {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(capabilities.clone()))
        .set_effective(Some(capabilities.clone()))
        .set_permitted(Some(capabilities.clone()))
        .set_inheritable(Some(HashSet::new()))
        .set_ambient(Some(HashSet::new()));
    let mut process = Process::default();
    process
        .set_terminal(Some(config.tty))
        .set_args(Some(arguments(config, image.entrypoint, image.cmd)?))
        .set_env(Some(environment(config, hostname, image.env)?))
        .set_cwd(directory(config, image.working_dir)?)
        .set_capabilities(Some(sets))
        .set_no_new_privileges(Some(config.security.no_new_privileges))
        .set_oom_score_adj(Some(config.oom_score_adj.clamp(-1000, 1000)))
        .set_rlimits(None);
    Ok(process)
}

/// Kubernetes' rules: a command replaces the entrypoint and the image's arguments; arguments alone
/// replace the image's arguments.
fn arguments(
    config: &ContainerConfig,
    entrypoint: Untrusted<Vec<String>>,
    cmd: Untrusted<Vec<String>>,
) -> Result<Vec<String>, String> {
    let mut arguments = match config.command.is_empty() {
        false => config.command.clone(),
        true => entrypoint.validate(without_nul)?,
    };
    if !config.args.is_empty() {
        arguments.extend(config.args.iter().cloned());
    } else if config.command.is_empty() {
        arguments.extend(cmd.validate(without_nul)?);
    }
    let arguments = without_nul(arguments)?;
    match arguments.first() {
        None => Err("no command specified".to_owned()),
        Some(_) => Ok(arguments),
    }
}

fn without_nul(texts: Vec<String>) -> Result<Vec<String>, String> {
    match texts.iter().any(|text| text.contains('\0')) {
        true => Err("an argument or a variable holds a NUL byte".to_owned()),
        false => Ok(texts),
    }
}

/// Defaults, then the image's, then the pod's; the last of a name wins, at its first place.
fn environment(
    config: &ContainerConfig,
    hostname: &str,
    image: Untrusted<Vec<String>>,
) -> Result<Vec<String>, String> {
    let mut merged: Vec<(String, String)> = vec![("PATH".into(), DEFAULT_PATH.into())];
    let mut set = |name: &str, value: &str| match merged.iter_mut().find(|(n, _)| n == name) {
        Some(known) => known.1 = value.to_owned(),
        None => merged.push((name.to_owned(), value.to_owned())),
    };
    if config.tty {
        set("TERM", "xterm");
    }
    set("HOSTNAME", hostname);
    for variable in image.validate(without_nul)? {
        if let Some((name, value)) = variable.split_once('=')
            && !name.is_empty()
        {
            set(name, value);
        }
    }
    for (name, value) in &config.env {
        if name.is_empty() || name.contains('=') {
            return Err(format!("invalid environment variable name {name:?}"));
        }
        set(name, value);
    }
    let lines = merged.into_iter().map(|(name, value)| format!("{name}={value}"));
    without_nul(lines.collect())
}

fn directory(config: &ContainerConfig, image: Untrusted<String>) -> Result<PathBuf, String> {
    let named = match config.working_dir.as_deref() {
        Some(named) if !named.is_empty() => named.to_owned(),
        _ => image.validate(Ok::<_, String>)?,
    };
    match named.as_str() {
        "" => Ok(PathBuf::from("/")),
        path if path.starts_with('/') && !path.contains('\0') => Ok(PathBuf::from(path)),
        other => Err(format!("the working directory {other:?} is not an absolute path")),
    }
}
