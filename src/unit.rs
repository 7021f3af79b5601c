//! The systemd services of a node: their text (pure), and putting them in place. `berth.service` is a node
//! that `berth join` made; `kubelet.service` and `berth-cri.service` are what `kubeadm join` expects.
//!
//! `KillMode=process` and `Delegate=yes`: a stop or a restart ends the agent alone, and nobody but berth
//! touches what is below its cgroup. Limits that systemd would give the agent are given to containers by
//! berth itself, so none is raised here but the number of files.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use berth_kubelet::replace::{Lasting, replace};

/// Where units of the administrator are.
const DIRECTORY: &str = "/etc/systemd/system";

/// The unit of a node that joined by itself.
const NAME: &str = "berth.service";

/// Those of a node that kubeadm joins, in the order in which they are stopped.
const KUBELET: &str = "kubelet.service";
const CRI: &str = "berth-cri.service";

/// Where kubeadm and its unit look for the kubelet, and where the kubelet keeps its things.
const KUBELET_PATH: &str = "/usr/bin/kubelet";
const KUBELET_STATE: &str = "/var/lib/kubelet";

/// How an agent is run.
const AGENT: &str = "\
Type=notify
NotifyAccess=main
Restart=always
RestartSec=2
WatchdogSec=30
TimeoutStartSec=120
TimeoutStopSec=30
Delegate=yes
KillMode=process
OOMScoreAdjust=-999
LimitNOFILE=65536:524288
TasksMax=infinity
";

/// What the line that tells whose unit this is starts with.
const MARK: &str = "# Node state: ";

/// A service to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// The executable, absolute.
    pub(crate) executable: PathBuf,
    /// What it is called with.
    pub(crate) arguments: Vec<String>,
    /// The node's state directory: by it `berth reset` knows the unit as its own.
    pub(crate) state_dir: PathBuf,
}

impl Unit {
    fn text(&self) -> String {
        let executable = self.executable.display().to_string();
        let words: Vec<_> =
            [executable].iter().chain(&self.arguments).map(|word| quoted(word)).collect();
        format!(
            "\
{MARK}{}
[Unit]
Description=berth, a Kubernetes node
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
ExecStart={}
{AGENT}
[Install]
WantedBy=multi-user.target
",
            self.state_dir.display(),
            words.join(" ")
        )
    }

    /// Writes the unit, enables it and starts it; returns once the agent says that it is ready.
    pub(crate) fn install(&self) -> Result<()> {
        need_systemd()?;
        write(NAME, &self.text())?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", NAME])
    }
}

/// Installs this executable as the kubelet that kubeadm starts, with the CRI socket that it asks.
pub(crate) fn install_kubelet() -> Result<()> {
    need_systemd()?;
    let executable = std::env::current_exe().context("finding this executable")?;
    let link = Path::new(KUBELET_PATH);
    match fs::read_link(link) {
        Ok(to) if to == executable => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => symlink(&executable, link)
            .with_context(|| format!("linking {} to {}", link.display(), executable.display()))?,
        _ => bail!("{} is there: another kubelet is installed", link.display()),
    }
    write(CRI, &cri_text(&executable))?;
    write(KUBELET, &kubelet_text())?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", KUBELET])?;
    systemctl(&["enable", "--now", CRI])
}

/// The unit that kubeadm starts and stops. It waits for kubeadm's configuration.
fn kubelet_text() -> String {
    format!(
        "\
{MARK}{KUBELET_STATE}
[Unit]
Description=berth, in the kubelet's place
Wants=network-online.target {CRI}
After=network-online.target time-sync.target {CRI}
ConditionPathExists={KUBELET_STATE}/config.yaml
StartLimitIntervalSec=0

[Service]
EnvironmentFile=-{KUBELET_STATE}/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart={KUBELET_PATH} --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
--kubeconfig=/etc/kubernetes/kubelet.conf --config={KUBELET_STATE}/config.yaml \
$KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
{AGENT}
[Install]
WantedBy=multi-user.target
"
    )
}

/// The unit that serves the CRI while no agent runs, too.
fn cri_text(executable: &Path) -> String {
    let executable = quoted(&executable.display().to_string());
    format!(
        "\
{MARK}{KUBELET_STATE}
[Unit]
Description=berth's CRI socket
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={executable} cri --state-dir {KUBELET_STATE}
Restart=always
RestartSec=2
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
"
    )
}

fn need_systemd() -> Result<()> {
    match Path::new("/run/systemd/system").is_dir() {
        true => Ok(()),
        false => bail!("systemd does not run this host"),
    }
}

fn write(name: &str, text: &str) -> Result<()> {
    let path = Path::new(DIRECTORY).join(name);
    // Nobody but root has to read how the agent is called, as the CIS benchmark asks (4.1.1).
    replace(&path, text.as_bytes(), 0o600, Lasting::PowerCut)
        .with_context(|| format!("writing {}", path.display()))
}

/// Stops and removes the units of this state directory, and the link that is the kubelet.
pub(crate) fn remove(state_dir: &Path) -> Result<()> {
    let mark = format!("{MARK}{}", state_dir.display());
    let mut any = false;
    for name in [NAME, KUBELET, CRI] {
        let path = Path::new(DIRECTORY).join(name);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if text.lines().next() != Some(&*mark) {
            continue;
        }
        systemctl(&["disable", "--now", name])?;
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        if name == KUBELET && fs::read_link(KUBELET_PATH).is_ok() {
            fs::remove_file(KUBELET_PATH).with_context(|| format!("removing {KUBELET_PATH}"))?;
        }
        any = true;
    }
    if any { systemctl(&["daemon-reload"]) } else { Ok(()) }
}

/// The files that make up a unit: its own and its drop-ins, the administrator's first.
pub(crate) fn files(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in [DIRECTORY, "/usr/lib/systemd/system"].map(Path::new) {
        found.extend(Some(directory.join(name)).filter(|path| path.is_file()));
        let Ok(entries) = fs::read_dir(directory.join(format!("{name}.d"))) else { continue };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        found.extend(paths.filter(|path| path.extension().is_some_and(|ending| ending == "conf")));
    }
    found
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let told = format!("systemctl {}", arguments.join(" "));
    let output = Command::new("systemctl").args(arguments).output();
    let output = output.with_context(|| format!("running {told}"))?;
    match output.status.success() {
        true => Ok(()),
        false => bail!("{told}: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// A word of a command line, as systemd reads them (systemd.service(5), "Command lines").
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for letter in word.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '%' | '$' => text.extend([letter, letter]),
            '\n' => text.push_str("\\n"),
            _ => text.push(letter),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> Unit {
        Unit {
            executable: "/usr/local/bin/berth".into(),
            arguments: vec!["agent".into(), "--node-label".into(), "a=100% \"$x\"".into()],
            state_dir: "/var/lib/berth".into(),
        }
    }

    #[test]
    fn containers_outlive_the_service_and_the_agent_says_that_it_lives() {
        let text = unit().text();
        for line in ["Type=notify", "KillMode=process", "Delegate=yes", "WatchdogSec=30"] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
        assert!(text.starts_with("# Node state: /var/lib/berth\n"));
    }

    #[test]
    fn the_kubelets_unit_reads_what_kubeadm_writes_and_waits_for_it() {
        let text = kubelet_text();
        for line in [
            "EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env",
            "ConditionPathExists=/var/lib/kubelet/config.yaml",
            "ExecStart=/usr/bin/kubelet \
             --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
             --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml \
             $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS",
            "KillMode=process",
            "Delegate=yes",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
        let text = cri_text(Path::new("/opt/my berth"));
        assert!(text.contains("ExecStart=\"/opt/my berth\" cri --state-dir /var/lib/kubelet\n"));
    }

    #[test]
    fn words_reach_the_agent_as_they_were_typed() {
        let line = "ExecStart=\"/usr/local/bin/berth\" \"agent\" \"--node-label\" \
                    \"a=100%% \\\"$$x\\\"\"";
        assert!(unit().text().contains(line), "{}", unit().text());
    }
}
