//! What a command says of itself: lines for the log that the caller named, in the two forms it reads.
//!
//! Callers take the last line of level `error` for the reason of a failure, so it is written whole and
//! in one piece. Without a log, lines go to standard error.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;

use super::error::During;
use super::{Error, Result};
use crate::clock;

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Format {
    #[default]
    Text,
    Json,
}

impl Format {
    pub(super) fn parse(text: &str) -> Result<Self> {
        match text {
            "text" | "" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(Error::Usage(format!("invalid log-format {text:?}"))),
        }
    }
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Debug,
    Warning,
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Where lines go.
#[derive(Debug)]
pub(super) struct Journal {
    file: Option<File>,
    format: Format,
    least: Level,
}

#[derive(Serialize)]
struct Line<'a> {
    level: &'a str,
    msg: &'a str,
    time: &'a str,
}

impl Journal {
    /// Opens the log at `path`, if one is named.
    pub(super) fn open(path: Option<&Path>, format: Format, least: Level) -> Result<Self> {
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.create(true).append(true).mode(0o644).open(path)
        };
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let file = path.map(open).transpose();
        let file = file.during(|| format!("open log {:?}", path.unwrap_or(Path::new(""))))?;
        Ok(Self { file, format, least })
    }

    /// Says something on the way.
    pub(super) fn say(&self, level: Level, message: &str) {
        if level >= self.least {
            self.write(level, message);
        }
    }

    /// Says what is being done, to whoever asks for that.
    pub(super) fn trace(&self, message: impl FnOnce() -> String) {
        if self.least == Level::Debug {
            self.write(Level::Debug, &message());
        }
    }

    /// Says which capabilities a specification names that are none.
    pub(super) fn warn_of_capabilities(&self, unknown: &[String]) {
        if !unknown.is_empty() {
            let names = unknown.join(" ");
            let message = format!("ignoring unknown or unavailable capabilities: [{names}]");
            self.say(Level::Warning, &message);
        }
    }

    /// Says why the command fails: in the log, and to whoever reads standard error.
    pub(super) fn fail(&self, message: &str) {
        self.write(Level::Error, message);
        if self.file.is_some() {
            eprintln!("{message}");
        }
    }

    /// The same where standard error is the container's still: people read there just what is told.
    pub(super) fn fail_plainly(&self, message: &str) {
        if self.file.is_some() {
            self.write(Level::Error, message);
        }
        eprintln!("{message}");
    }

    fn write(&self, level: Level, message: &str) {
        let line = line(self.format, level, message, &clock::rfc3339_seconds(clock::now()));
        // Nowhere is left to say that the log itself fails.
        let _ = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

fn line(format: Format, level: Level, message: &str, time: &str) -> String {
    let level = level.name();
    let mut line = match format {
        // Plain strings: encoding cannot fail.
        Format::Json => {
            serde_json::to_string(&Line { level, msg: message, time }).unwrap_or_default()
        }
        Format::Text => format!("time={time:?} level={level} msg={message:?}"),
    };
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_form_that_callers_read() {
        let time = "2026-01-02T03:04:05Z";
        assert_eq!(
            line(Format::Json, Level::Error, "exec: \"x\": \n", time),
            "{\"level\":\"error\",\"msg\":\"exec: \\\"x\\\": \\n\",\"time\":\"2026-01-02T03:04:05Z\"}\n"
        );
        assert_eq!(
            line(Format::Text, Level::Warning, "a \"b\"", time),
            "time=\"2026-01-02T03:04:05Z\" level=warning msg=\"a \\\"b\\\"\"\n"
        );
    }

    #[test]
    fn quiet_lines_are_not_written_unless_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let journal = Journal::open(Some(&path), Format::Text, Level::Warning).unwrap();
        journal.say(Level::Debug, "no");
        journal.say(Level::Warning, "yes");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("yes") && !text.contains("no"), "{text}");
        assert!(Format::parse("xml").is_err());
    }
}
