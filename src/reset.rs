//! `berth reset`: ends every pod and removes everything that berth made on this host.
//!
//! Goes on past failures, and reports them all: what could not be removed is left where the next
//! reset finds it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use berth_cni::Network;
use berth_kubelet::cache::Cache;
use berth_kubelet::qos::{Class, Driver};
use berth_kubelet::volumes::{self, PodDirectory};
use berth_runtime::cgroup::{GroupPath, Hierarchy};
use berth_runtime::interface::Runtime;

use crate::cli::ResetFlags;
use crate::host::Host;
use crate::logind::Logind;
use crate::node::network_config;
use crate::settings::{Places, Settings};
use crate::unit;

/// Resets the host.
pub(crate) async fn run(flags: ResetFlags) -> Result<()> {
    let settings = Settings::of_host(&flags.host)?;
    let places = &settings.places;
    if !places.state_dir.exists() && !places.run_dir.exists() {
        println!("nothing of berth is here");
        return Ok(());
    }
    let mut failures = Vec::new();
    // The agent that it runs holds what is removed here.
    unit::remove(&std::path::absolute(&places.state_dir)?)?;
    let host = Host::open(places, &settings.resolv_conf).await?;
    host.network.remove_later();
    let sandboxes = host.engine.list().await?;
    for sandbox in &sandboxes {
        let pod = &sandbox.config.pod;
        keep(
            &mut failures,
            host.engine.remove_sandbox(&sandbox.id).await.with_context(|| {
                format!("removing sandbox {} of pod {}/{}", sandbox.id, pod.namespace, pod.name)
            }),
        );
    }
    println!("ended {} pods", sandboxes.len());
    let mut pods: BTreeSet<_> = sandboxes.into_iter().map(|s| s.config.pod.uid).collect();
    pods.extend(PodDirectory::list(&places.state_dir)?);
    pods.extend(Cache::new(&places.state_dir).uids()?);
    keep(&mut failures, network(&settings).await);
    keep(&mut failures, berth_proxy::teardown(None).context("removing the rules of Services"));
    keep(&mut failures, Logind::new(&places.state_dir).forget().await);
    println!("removed the pod network and the rules of Services");
    failures.extend(pod_directories(places, &pods));
    keep(&mut failures, groups());
    keep(&mut failures, berth_runtime::unload_default_apparmor().map_err(anyhow::Error::msg));
    drop(host);
    keep(&mut failures, directories(places, &flags));
    println!("removed cgroups, volumes, logs and records");
    if failures.is_empty() {
        return Ok(());
    }
    for failure in &failures {
        eprintln!("left: {failure:#}");
    }
    bail!("{} things could not be removed", failures.len())
}

fn keep(failures: &mut Vec<anyhow::Error>, result: Result<()>) {
    failures.extend(result.err());
}

async fn network(settings: &Settings) -> Result<()> {
    let config = network_config(settings, Vec::new());
    Network::remove_all(config).await.context("removing the pod network")
}

/// Volumes are unmounted and removed by the kubelet's own walk, which follows no link.
fn pod_directories(places: &Places, pods: &BTreeSet<String>) -> Vec<anyhow::Error> {
    let mut failures = Vec::new();
    for uid in pods {
        match PodDirectory::new(&places.state_dir, uid) {
            Ok(directory) => match volumes::tear_down(&directory) {
                Ok(()) => {}
                Err(errors) => failures.extend(errors.into_iter().map(anyhow::Error::new)),
            },
            Err(error) => failures.push(anyhow::Error::new(error)),
        }
    }
    keep(&mut failures, logs(places, pods));
    failures
}

/// The pods' logs and the links to them; others' in the same directories stay.
fn logs(places: &Places, pods: &BTreeSet<String>) -> Result<()> {
    let of_pod = |name: &str| name.rsplit_once('_').is_some_and(|(_, uid)| pods.contains(uid));
    remove_entries(&places.log_dir, of_pod)?;
    let dangling = |name: &str| {
        let link = places.log_links_dir.join(name);
        fs::read_link(&link).is_ok_and(|to| to.starts_with(&places.log_dir) && !link.exists())
    };
    remove_entries(&places.log_links_dir, dangling)?;
    for directory in [&places.log_dir, &places.log_links_dir] {
        match remove_emptied(directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            result => result.with_context(|| format!("removing {}", directory.display()))?,
        }
    }
    Ok(())
}

/// The QoS cgroups, where nobody else's pods are in them: of both drivers, as pods outlive a change.
fn groups() -> Result<()> {
    let hierarchy = Hierarchy::detect()?;
    for driver in [Driver::Cgroupfs, Driver::Systemd] {
        // The last is around the others.
        for class in [Class::BestEffort, Class::Burstable, Class::Guaranteed] {
            let path = driver.class_path(class);
            let removed = hierarchy.remove_unused(&GroupPath::try_from(path.as_path())?);
            removed.with_context(|| format!("removing cgroup {}", path.display()))?;
        }
    }
    Ok(())
}

fn directories(places: &Places, flags: &ResetFlags) -> Result<()> {
    remove_entries(&places.run_dir, |_| true)?;
    let kept = ["bootstrap.conf", "images", "kubelet.conf", "pki", "standalone"];
    remove_entries(&places.state_dir, |name| !flags.keep_state || !kept.contains(&name))?;
    if !flags.keep_state {
        remove_emptied(&places.state_dir).context("removing the state directory")?;
    }
    Ok(())
}

/// Removes what is in a directory, but not the directory: it may be a mount point.
fn remove_entries(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("reading {}", directory.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        if !wanted(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type()?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        absent(removed).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// Removes a directory with nothing in it, unless something is mounted there.
fn remove_emptied(directory: &Path) -> io::Result<()> {
    match absent(fs::remove_dir(directory)) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        result => result,
    }
}

/// What is not there needs no removal.
fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
