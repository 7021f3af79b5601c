//! The systemd service of a node that joined: its text (pure), and putting it in place.
//!
//! `KillMode=process` and `Delegate=yes`: a stop or a restart ends the agent alone, and nobody but berth
//! touches what is below its cgroup. Limits that systemd would give the agent are given to containers by
//! berth itself, so none is raised here but the number of files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where units of the administrator are.
const DIRECTORY: &str = "/etc/systemd/system";

/// The unit's name.
const NAME: &str = "berth.service";

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
Type=notify
NotifyAccess=main
ExecStart={}
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

[Install]
WantedBy=multi-user.target
",
            self.state_dir.display(),
            words.join(" ")
        )
    }

    /// Writes the unit, enables it and starts it; returns once the agent says that it is ready.
    pub(crate) fn install(&self) -> Result<()> {
        if !Path::new("/run/systemd/system").is_dir() {
            bail!("--systemd: systemd does not run this host");
        }
        let path = Path::new(DIRECTORY).join(NAME);
        let temporary = path.with_extension("new");
        fs::write(&temporary, self.text())
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("writing {}", path.display()))?;
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", NAME])
    }
}

/// Stops and removes the unit of this state directory, if there is one.
pub(crate) fn remove(state_dir: &Path) -> Result<()> {
    let path = Path::new(DIRECTORY).join(NAME);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    if text.lines().next() != Some(&*format!("{MARK}{}", state_dir.display())) {
        return Ok(());
    }
    systemctl(&["disable", "--now", NAME])?;
    fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    systemctl(&["daemon-reload"])
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
    fn words_reach_the_agent_as_they_were_typed() {
        let line = "ExecStart=\"/usr/local/bin/berth\" \"agent\" \"--node-label\" \
                    \"a=100%% \\\"$$x\\\"\"";
        assert!(unit().text().contains(line), "{}", unit().text());
    }
}
