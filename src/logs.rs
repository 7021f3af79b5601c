//! `berth logs`: a container's log from the node's disk, with no API server and no agent.
//!
//! The layout is the kubelet's: `<log dir>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use berth_runtime::logs::{self, LogOptions};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::cli::LogsFlags;
use crate::settings::Places;

/// Prints the log that the flags name.
pub(crate) async fn run(flags: LogsFlags) -> Result<()> {
    let places = Places::resolve(&flags.host)?;
    let directory = container_directory(&places.log_dir, &flags)?;
    let file = attempt(&directory, flags.previous)?;
    let options = LogOptions {
        tail_lines: flags.tail,
        timestamps: flags.timestamps,
        follow: flags.follow.then(CancellationToken::new),
        ..LogOptions::default()
    };
    let mut lines = std::pin::pin!(logs::read(file, options));
    let mut out = io::stdout().lock();
    while let Some(chunk) = lines.next().await {
        match out.write_all(&chunk?) {
            // Nobody reads on: as with any filter, that is no error.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written?,
        }
        out.flush()?;
    }
    Ok(())
}

/// The directory of the one container that the flags mean.
fn container_directory(log_dir: &Path, flags: &LogsFlags) -> Result<PathBuf> {
    let (namespace, name) = match flags.pod.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, flags.pod.as_str()),
    };
    let is_wanted = |directory: &String| {
        let mut parts = directory.split('_');
        let (found_namespace, found_name) = (parts.next(), parts.next());
        found_name == Some(name) && (namespace.is_none() || namespace == found_namespace)
    };
    let mut pods: Vec<_> = entries(log_dir)?.into_iter().filter(is_wanted).collect();
    // A name that was used again: the pod that was made last.
    pods.sort_by_key(|pod| fs::metadata(log_dir.join(pod)).and_then(|m| m.modified()).ok());
    let Some(pod) = pods.last() else {
        bail!("pod {:?} has no logs below {}", flags.pod, log_dir.display());
    };
    let directory = log_dir.join(pod);
    let containers = entries(&directory)?;
    match (&flags.container, &containers[..]) {
        (Some(wanted), all) if all.contains(wanted) => Ok(directory.join(wanted)),
        (Some(wanted), all) => {
            bail!("pod {:?} has no container {wanted:?}: it has {}", flags.pod, all.join(", "))
        }
        (None, [only]) => Ok(directory.join(only)),
        (None, []) => bail!("pod {:?} has no logs yet", flags.pod),
        (None, all) => bail!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            flags.pod,
            all.join(" ")
        ),
    }
}

/// The log of the newest attempt, or of the one before.
fn attempt(directory: &Path, previous: bool) -> Result<PathBuf> {
    let mut attempts: Vec<u64> = entries(directory)?
        .iter()
        .filter_map(|name| name.strip_suffix(".log")?.parse().ok())
        .collect();
    attempts.sort_unstable();
    if previous {
        attempts.pop().context("no log")?;
    }
    match attempts.last() {
        Some(attempt) => Ok(directory.join(format!("{attempt}.log"))),
        None if previous => bail!("previous terminated container not found"),
        None => bail!("{} holds no log", directory.display()),
    }
}

fn entries(directory: &Path) -> Result<Vec<String>> {
    let read =
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut names = read
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}
