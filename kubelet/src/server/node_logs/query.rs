//! The query of the node log API (KEP-2258): which services or file, and what of it. Pure.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::server::streams::pairs;

/// The most services at once.
const MAX_SERVICES: usize = 4;

/// The longest name of a service.
const MAX_NAME: usize = 256;

/// The most lines from the end.
const MAX_LINES: u32 = 100_000;

/// The longest pattern.
const MAX_PATTERN: usize = 1024;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Query {
    /// A file beneath the log directory.
    File(String),
    /// What services wrote.
    Services(Services),
}

/// What services wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Services {
    pub(super) names: Vec<String>,
    pub(super) options: Options,
}

/// Which part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    lines: Option<u32>,
    boot: Option<i32>,
    pattern: Option<String>,
}

impl Query {
    /// Reads a query string. `None` where it asks for nothing of this API.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, String> {
        let (mut names, mut files, mut asks) = (Vec::new(), Vec::new(), false);
        let mut options = Options::default();
        for (name, value) in pairs(text) {
            if name == "query" {
                asks = true;
                match value.trim() {
                    "" => {}
                    // A slash is a hint that a file is meant.
                    _ if value.contains(['/', '\\']) => files.push(value.replace('\\', "/")),
                    _ => names.push(value),
                }
            } else if !value.is_empty() {
                options.take(&name, &value)?;
            }
        }
        if !asks && options == Options::default() {
            return Ok(None);
        }
        options.check()?;
        match (names.as_slice(), files.as_slice()) {
            ([], []) => Err("query: cannot be empty".to_owned()),
            ([], [file]) if file.contains('\0') => Err(format!("query: {file:?} is no file")),
            ([], [_]) if options != Options::default() => {
                Err("query: cannot specify file with options".to_owned())
            }
            ([], [file]) => Ok(Some(Self::File(file.clone()))),
            ([], _) => Err("query: cannot specify more than one file".to_owned()),
            (_, []) => {
                check_names(&names)?;
                Ok(Some(Self::Services(Services { names, options })))
            }
            _ => Err("query: cannot specify a file and service".to_owned()),
        }
    }
}

fn check_names(names: &[String]) -> Result<(), String> {
    if names.len() > MAX_SERVICES {
        return Err(format!("query: must have at most {MAX_SERVICES} services"));
    }
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
    match names.iter().find(|name| name.len() > MAX_NAME || !name.bytes().all(safe)) {
        Some(name) if name.len() > MAX_NAME => {
            Err(format!("query: a service's name has at most {MAX_NAME} characters"))
        }
        Some(name) => Err(format!("query: {name:?}: input contains unsupported characters")),
        None => Ok(()),
    }
}

impl Options {
    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let time = || {
            value
                .parse::<Timestamp>()
                .map_err(|_| format!("{name}: {value:?}: invalid time format"))
        };
        match name {
            "sinceTime" => self.since = Some(time()?),
            "untilTime" => self.until = Some(time()?),
            "tailLines" => {
                let lines = value.parse().ok().filter(|lines| *lines <= MAX_LINES);
                let wrong = || format!("{name}: {value:?}: must be between 0 and {MAX_LINES}");
                self.lines = Some(lines.ok_or_else(wrong)?);
            }
            "boot" => {
                let boot = value.parse().ok().filter(|boot| *boot < 1);
                self.boot =
                    Some(boot.ok_or_else(|| format!("{name}: {value:?}: must be less than 1"))?);
            }
            "pattern" if value.len() > MAX_PATTERN || value.contains('\0') => {
                return Err(format!("{name}: must be text of at most {MAX_PATTERN} bytes"));
            }
            "pattern" => self.pattern = Some(value.to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        match (self.since, self.until) {
            (Some(since), Some(until)) if since > until => {
                Err("untilTime: must be after sinceTime".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// journalctl's arguments for these services. Every value is part of its option's own argument, so
    /// that none can be taken for another option.
    pub(super) fn arguments(&self, services: &[String]) -> Vec<String> {
        let time = |time: Timestamp| time.to_zoned(TimeZone::UTC).strftime("%F %T UTC").to_string();
        let mut all: Vec<String> =
            ["--utc", "--no-pager", "--output=short-precise"].map(str::to_owned).into();
        all.extend(self.since.map(|at| format!("--since={}", time(at))));
        all.extend(self.until.map(|at| format!("--until={}", time(at))));
        all.extend(self.lines.map(|lines| format!("--lines={lines}")));
        all.extend(services.iter().map(|name| format!("--unit={name}")));
        all.extend(self.pattern.as_ref().map(|pattern| format!("--grep={pattern}")));
        all.extend(self.boot.map(|boot| format!("--boot={boot}")));
        all
    }
}
