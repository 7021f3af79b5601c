//! `vm shell`: a root shell in the guest on this terminal.
//!
//! Owns the terminal's mode while the shell runs.

use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_vm::{Config, Job};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Nobody works longer at one.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Boots the machine, runs a shell and returns its exit status.
pub(crate) fn open(config: Config) -> Result<u8> {
    if !io::stdin().is_terminal() {
        bail!("the standard input is no terminal: use `vm run -- COMMAND`");
    }
    let job = Job { terminal: Some(terminal_size()?), ..Job::new(["/bin/bash", "-l"]) };
    let mut vm = super::boot(&config)?;
    let mut input = vm.input();
    let raw = Raw::enter()?;
    std::thread::spawn(move || input.feed(&mut io::stdin()));
    let status = vm.run(&job, PATIENCE, &mut io::stdout(), &mut io::stderr());
    drop(raw);
    vm.power_off()?;
    Ok(super::exit_status(status?))
}

/// The terminal passes every key on; as it was again when dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("read the terminal's mode")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).context("set the terminal's mode")?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Rows and columns, as stty(1) reads them.
fn terminal_size() -> Result<(u16, u16)> {
    let output = std::process::Command::new("stty")
        .arg("size")
        .stdin(std::process::Stdio::inherit())
        .output()
        .context("run stty")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let size = text.trim().split_once(' ');
    Ok(size
        .and_then(|(rows, columns)| Some((rows.parse().ok()?, columns.parse().ok()?)))
        .unwrap_or((24, 80)))
}
