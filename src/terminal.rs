//! The terminal that a command runs on: raw while it is another's, its size, and when that changes.

use std::io::{IsTerminal, Stdin};

use anyhow::{Context, Result};
use berth_runtime::interface::TerminalSize;
use rustix::termios::{self, OptionalActions, Termios};

/// The terminal of standard input in raw mode, until this is dropped.
pub(crate) struct Raw {
    stdin: Stdin,
    before: Termios,
}

impl Raw {
    /// Makes it raw. `None` where standard input is no terminal.
    pub(crate) fn enter() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw).context("setting the terminal")?;
        Ok(Some(Self { stdin, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone has no settings to be restored.
        let _ = termios::tcsetattr(&self.stdin, OptionalActions::Now, &self.before);
    }
}

/// The size of the terminal that this command runs on, if it runs on one.
pub(crate) fn size() -> Option<TerminalSize> {
    let size = termios::tcgetwinsize(std::io::stdin())
        .or_else(|_| termios::tcgetwinsize(std::io::stdout()))
        .ok()?;
    let size = TerminalSize { columns: size.ws_col, rows: size.ws_row };
    (size.columns > 0 && size.rows > 0).then_some(size)
}
