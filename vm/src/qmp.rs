//! The few commands that are given to QEMU itself, over its QMP socket.
//!
//! Owns one connection; one command at a time, events are skipped.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Connection {
    /// Takes the greeting and leaves the negotiation mode.
    pub(crate) fn open(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let lines = BufReader::new(stream.try_clone().context("clone QEMU's socket")?);
        let mut connection = Connection { stream, lines };
        let greeting = connection.read()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greeted with {greeting}");
        }
        connection.execute("qmp_capabilities")?;
        Ok(connection)
    }

    /// Ends QEMU, flushing the disks' images.
    pub(crate) fn quit(&mut self) -> Result<()> {
        self.execute("quit")
    }

    fn execute(&mut self, command: &str) -> Result<()> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.stream.write_all(line.as_bytes()).with_context(|| format!("tell QEMU {command}"))?;
        loop {
            let answer = self.read()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.lines.read_line(&mut line).context("read QEMU's answer")?;
        if count == 0 {
            bail!("QEMU closed its socket");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU answered {line:?}"))
    }
}
