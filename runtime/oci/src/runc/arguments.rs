//! Arguments: the options before the command, and what the commands' own have in common.
//!
//! Flags may have a value as Go's programs take it (`--detach=false`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lexopt::{Arg, Parser, ValueExt};

use super::id::Id;
use super::journal::{Format, Journal, Level};
use super::store::{Origin, Store};
use super::{Context, Error, Result};
use crate::cgroup::place::Driver;

pub(super) const GLOBAL_OPTIONS: &str = "\
  --root DIR             state directory (/run/berth-oci, or below $XDG_RUNTIME_DIR)
  --log FILE             write the log there instead of standard error
  --log-format FORMAT    text or json
  --debug                log what is done
  --systemd-cgroup       let systemd make cgroups
  --rootless VALUE       auto, true or false: accepted, found out by itself
  --version, -v          print the version
  --help, -h             print this";

/// What stands before the command's own arguments.
pub(super) enum Global {
    Help,
    Version,
    Command { name: String, options: Options },
}

/// The global options.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    root: Option<PathBuf>,
    log: Option<PathBuf>,
    format: Format,
    least: Level,
    driver: Driver,
}

impl Global {
    /// Parses up to and including the command's name.
    pub(super) fn parse(parser: &mut Parser) -> Result<Self> {
        let mut options = Options {
            root: None,
            log: None,
            format: Format::default(),
            least: Level::Warning,
            driver: Driver::Cgroupfs,
        };
        loop {
            match next(parser)? {
                None => return Ok(Self::Help),
                Some(Argument::Flag(flag)) => match flag.as_str() {
                    "h" | "help" => return Ok(Self::Help),
                    "v" | "version" => return Ok(Self::Version),
                    "root" => options.root = Some(path(parser)?),
                    "log" => options.log = Some(path(parser)?),
                    "log-format" => options.format = Format::parse(&text(parser)?)?,
                    "debug" if switch(parser)? => options.least = Level::Debug,
                    "systemd-cgroup" if switch(parser)? => options.driver = Driver::Systemd,
                    "debug" | "systemd-cgroup" => {}
                    "rootless" => match text(parser)?.as_str() {
                        "auto" | "true" | "false" => {}
                        other => {
                            return Err(Error::Usage(format!("invalid --rootless {other:?}")));
                        }
                    },
                    // CRIU is not offered; its path does no harm.
                    "criu" => drop(text(parser)?),
                    other => return Err(unknown(other)),
                },
                Some(Argument::Value(name)) => match name.string()?.as_str() {
                    "help" => return Ok(Self::Help),
                    name => return Ok(Self::Command { name: name.to_owned(), options }),
                },
            }
        }
    }
}

impl Options {
    /// Opens what they name and carries a command out.
    pub(super) fn with_context(self, command: impl FnOnce(&Context) -> u8) -> u8 {
        let journal = match Journal::open(self.log.as_deref(), self.format, self.least) {
            Ok(journal) => journal,
            Err(error) => {
                eprintln!("berth-oci: {}", error.chain());
                return crate::FAILURE;
            }
        };
        let given = self.root.filter(|root| !root.as_os_str().is_empty());
        let origin = if given.is_some() { Origin::Given } else { Origin::Default };
        let root = match given.map(std::path::absolute).transpose() {
            Ok(root) => root.unwrap_or_else(default_root),
            Err(error) => {
                journal.fail(&format!("find the state directory: {error}"));
                return crate::FAILURE;
            }
        };
        command(&Context { store: Store::new(root, origin), journal, driver: self.driver })
    }
}

fn default_root() -> PathBuf {
    let runtime =
        std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !rustix::process::geteuid().is_root());
    match runtime {
        Some(directory) => Path::new(&directory).join("berth-oci"),
        None => PathBuf::from("/run/berth-oci"),
    }
}

/// One argument.
pub(super) enum Argument {
    /// An option's name, long or short, without dashes.
    Flag(String),
    Value(OsString),
}

/// The next argument.
pub(super) fn next(parser: &mut Parser) -> Result<Option<Argument>> {
    Ok(parser.next()?.map(|argument| match argument {
        Arg::Short(letter) => Argument::Flag(letter.to_string()),
        Arg::Long(name) => Argument::Flag(name.to_owned()),
        Arg::Value(value) => Argument::Value(value),
    }))
}

/// Whether a flag is on: it is, unless its value says otherwise.
pub(super) fn switch(parser: &mut Parser) -> Result<bool> {
    let Some(value) = parser.optional_value() else { return Ok(true) };
    match value.to_str() {
        Some("true" | "1" | "t") => Ok(true),
        Some("false" | "0" | "f") => Ok(false),
        _ => Err(Error::Usage(format!("{value:?} is neither true nor false"))),
    }
}

/// An option's value.
pub(super) fn text(parser: &mut Parser) -> Result<String> {
    Ok(parser.value()?.string()?)
}

/// An option's value.
pub(super) fn path(parser: &mut Parser) -> Result<PathBuf> {
    Ok(parser.value()?.into())
}

/// An option's value.
pub(super) fn number<T: std::str::FromStr>(parser: &mut Parser, option: &str) -> Result<T> {
    let text = text(parser)?;
    text.parse().map_err(|_| Error::Usage(format!("--{option}: {text:?} is no valid number")))
}

/// What an option that a command does not know is.
pub(super) fn unknown(flag: &str) -> Error {
    match flag {
        "h" | "help" => Error::Help,
        _ => Error::Usage(format!("flag provided but not defined: {flag}")),
    }
}

/// Takes the only argument of a command, its container.
pub(super) fn only_id(values: &[OsString]) -> Result<Id> {
    match values {
        [id] => Id::parse(&id.to_string_lossy()),
        [] => Err(Error::Usage("a container ID is needed".to_owned())),
        _ => Err(Error::Usage("there are too many arguments".to_owned())),
    }
}

/// Parses a command that takes flags and values in any order.
pub(super) fn collect(
    parser: &mut Parser,
    mut flag: impl FnMut(&str, &mut Parser) -> Result<()>,
) -> Result<Vec<OsString>> {
    let mut values = Vec::new();
    while let Some(argument) = next(parser)? {
        match argument {
            Argument::Flag(name) => flag(&name, parser)?,
            Argument::Value(value) => values.push(value),
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<(String, Options)> {
        let mut parser = Parser::from_args(line.split_whitespace());
        match Global::parse(&mut parser)? {
            Global::Command { name, options } => Ok((name, options)),
            Global::Help | Global::Version => Err(Error::Help),
        }
    }

    #[test]
    fn the_lines_of_the_callers_are_understood() {
        let (name, options) =
            parse("--root /r --log /l --log-format json --systemd-cgroup create --bundle b c")
                .unwrap();
        assert_eq!(name, "create");
        assert_eq!(options.root.as_deref(), Some(Path::new("/r")));
        assert_eq!((options.format, options.driver), (Format::Json, Driver::Systemd));
        let (_, options) =
            parse("--root=/r --log-format=text --debug=false --rootless auto x").unwrap();
        assert_eq!((options.least, options.driver), (Level::Warning, Driver::Cgroupfs));
        assert_eq!(parse("--debug x").unwrap().1.least, Level::Debug);
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for line in
            ["--nonsense x", "--log-format xml x", "--debug=maybe x", "--rootless no x", "--root"]
        {
            assert!(matches!(parse(line), Err(Error::Usage(_))), "{line}");
        }
        assert!(matches!(parse(""), Err(Error::Help)));
    }

    #[test]
    fn a_command_needs_its_container_and_nothing_else() {
        let ids = |line: &str| {
            let values: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            only_id(&values)
        };
        assert!(ids("a").is_ok());
        for line in ["", "a b", "a/b"] {
            assert!(ids(line).is_err(), "{line}");
        }
    }
}
