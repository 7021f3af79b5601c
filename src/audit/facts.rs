//! What the audit looks at: who may read and change the agent's files, what its configuration says, and
//! what listens on this host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, Value};

use crate::cli::AuditFlags;
use crate::join::Files;
use crate::settings::{self, Places};
use crate::unit;

/// A file's owner and who may do what to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) path: PathBuf,
    /// The permission bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Everything that is judged. A file that is not there is not in its list.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// The service's unit and its drop-ins.
    pub(super) units: Vec<Owned>,
    /// What the unit executes the agent with.
    pub(super) command: String,
    /// How the agent reaches the API server, and as whom; the service proxy uses the same.
    pub(super) kubeconfigs: Vec<Owned>,
    /// The authority whose client certificates are believed.
    pub(super) client_cas: Vec<Owned>,
    /// The configuration and what goes over it.
    pub(super) configurations: Vec<Owned>,
    /// Serving and client keys.
    pub(super) keys: Vec<Owned>,
    /// `KubeletConfiguration` as it is written.
    pub(super) written: Map<String, Value>,
    /// TCP ports that are open to other hosts.
    pub(super) ports: BTreeSet<u16>,
}

/// Reads them.
///
/// # Errors
/// When the configuration cannot be read.
pub(super) fn read(flags: &AuditFlags) -> Result<Facts> {
    let (places, written) = settings::written(&flags.host)?;
    let files = Files::of(&places);
    let units = match &flags.unit {
        Some(unit) => vec![unit.clone()],
        None => ["berth.service", "kubelet.service"].into_iter().flat_map(unit::files).collect(),
    };
    let command = units.iter().filter_map(|unit| fs::read_to_string(unit).ok());
    let command = command.flat_map(|text| executed(&text)).collect::<Vec<_>>().join("\n");
    let text = |pointer: &str| {
        let value = Value::Object(written.clone());
        value.pointer(pointer).and_then(Value::as_str).map(PathBuf::from)
    };
    let kubeconfigs = flags.kubeconfig.clone().map_or_else(
        || {
            let standalone = ends(&places.state_dir.join("standalone"), ".kubeconfig");
            [vec![files.kubeconfig, files.bootstrap], standalone].concat()
        },
        |one| vec![one],
    );
    let client_ca = text("/authentication/x509/clientCAFile");
    let pki = standalone_pki(&places);
    let client_ca = client_ca.map_or_else(
        || vec![files.pki.join("cluster-ca.crt"), pki.join("ca.crt")],
        |one| vec![one],
    );
    let configurations = flags.host.config.iter().cloned();
    let overlay = flags.host.config_dir.as_deref().map(|dir| ends(dir, ".conf"));
    let keys = [ends(&files.pki, ".key"), ends(&files.pki, ".pem"), ends(&pki, ".key")].concat();
    let keys = keys.into_iter().chain(text("/tlsPrivateKeyFile"));
    Ok(Facts {
        units: owned(units),
        command,
        kubeconfigs: owned(kubeconfigs),
        client_cas: owned(client_ca),
        configurations: owned(configurations.chain(overlay.unwrap_or_default())),
        keys: owned(keys),
        written,
        ports: open_ports(),
    })
}

fn standalone_pki(places: &Places) -> PathBuf {
    places.state_dir.join("standalone/pki")
}

/// The lines of a unit that say what is executed.
fn executed(unit: &str) -> Vec<String> {
    let lines = unit.lines().map(str::trim);
    lines.filter(|line| line.starts_with("ExecStart=")).map(str::to_owned).collect()
}

/// The files of a directory whose names end so.
fn ends(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let all = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let named = |path: &PathBuf| path.to_str().is_some_and(|text| text.ends_with(ending));
    let mut found: Vec<_> = all.filter(named).collect();
    found.sort();
    found
}

/// The owners of those files that are there. Links are followed: what counts is what is read.
pub(super) fn owned(paths: impl IntoIterator<Item = PathBuf>) -> Vec<Owned> {
    let one = |path: PathBuf| {
        let about = fs::metadata(&path).ok()?;
        Some(Owned { mode: about.mode() & 0o7777, uid: about.uid(), gid: about.gid(), path })
    };
    paths.into_iter().filter_map(one).collect()
}

/// The TCP ports of this network namespace that listen on more than loopback.
fn open_ports() -> BTreeSet<u16> {
    let read = |name: &str| fs::read_to_string(Path::new("/proc/self/net").join(name));
    let tables = ["tcp", "tcp6"].into_iter().filter_map(|name| read(name).ok());
    tables.flat_map(|table| table.lines().filter_map(open_port).collect::<Vec<_>>()).collect()
}

/// The port of a line of `/proc/net/tcp` or `tcp6` that listens on more than loopback.
fn open_port(line: &str) -> Option<u16> {
    let mut words = line.split_whitespace().skip(1);
    let (address, port) = words.next()?.rsplit_once(':')?;
    let listens = words.nth(1)? == "0A";
    // Words of four bytes in the host's order: 127.0.0.0/8, ::1 and ::ffff:127.0.0.0/104.
    let is_loopback = match address.len() {
        8 => address.ends_with("7F"),
        _ => {
            address == "00000000000000000000000001000000"
                || address.starts_with("0000000000000000FFFF0000") && address.ends_with("7F")
        }
    };
    (listens && !is_loopback).then(|| u16::from_str_radix(port, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_only_this_host_reaches_are_not_open() {
        let line = |address: &str, state: &str| {
            open_port(&format!("   0: {address}:2807 00000000:0000 {state} 00000000:00000000 00"))
        };
        let any = "0".repeat(32);
        assert_eq!(line("00000000", "0A"), Some(10247));
        assert_eq!(line("010200C0", "0A"), Some(10247));
        assert_eq!(line(&any, "0A"), Some(10247));
        assert_eq!(line("0100007F", "0A"), None);
        assert_eq!(line("00000000000000000000000001000000", "0A"), None);
        assert_eq!(line("0000000000000000FFFF00000100007F", "0A"), None);
        assert_eq!(line("00000000", "01"), None, "connected, not listening");
        assert_eq!(open_port("  sl  local_address rem_address   st"), None);
    }

    #[test]
    fn a_files_mode_is_read_behind_links_and_what_is_missing_is_left_out() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("file"), "").unwrap();
        fs::set_permissions(path("file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("file", path("link")).unwrap();
        let found = owned([path("link"), path("missing")]);
        assert_eq!(found.iter().map(|one| one.mode).collect::<Vec<_>>(), [0o640]);
        assert_eq!(ends(root.path(), "nk"), [path("link")]);
    }
}
