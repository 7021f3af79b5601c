//! `ps`: the processes of a container, as the host's ps(1) shows them or as numbers.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write;
use std::process::Command;

use lexopt::Parser;

use super::arguments::{self, Argument};
use super::error::During;
use super::id::Id;
use super::{Context, Error, Result};
use crate::cgroup::Cgroup;

pub(super) const USAGE: &str = "ps [--format table|json] ID [PS OPTION...]
  --format, -f FORMAT   a table, or a JSON list of process ids";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Table,
    Json,
}

/// Prints the processes of a container and of the cgroups below its own.
pub(super) fn ps(context: &Context, parser: &mut Parser) -> Result<u8> {
    let mut format = Format::Table;
    let id = loop {
        match arguments::next(parser)? {
            None => return Err(Error::Usage("a container ID is needed".to_owned())),
            Some(Argument::Flag(flag)) => match flag.as_str() {
                "f" | "format" => format = parse_format(&arguments::text(parser)?)?,
                _ => return Err(arguments::unknown(&flag)),
            },
            Some(Argument::Value(id)) => break Id::parse(&id.to_string_lossy())?,
        }
    };
    // What follows is for ps(1), whatever it looks like.
    let options: Vec<OsString> = parser.raw_args()?.collect();
    let record = context.store.entry(&id).load()?;
    let pids = Cgroup::find(&record.cgroup)?.map(|cgroup| cgroup.processes()).unwrap_or_default();
    let mut output = std::io::stdout().lock();
    let text = match format {
        Format::Json => serde_json::json!(pids).to_string(),
        Format::Table => table(&run_ps(options)?, &pids.into_iter().collect())?,
    };
    writeln!(output, "{text}").during(|| "print the processes")?;
    Ok(0)
}

fn parse_format(text: &str) -> Result<Format> {
    match text {
        "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        _ => Err(Error::Usage("invalid format option".to_owned())),
    }
}

fn run_ps(mut options: Vec<OsString>) -> Result<String> {
    if options.is_empty() {
        options.push(OsString::from("-ef"));
    }
    let output = Command::new("ps").args(options).output().during(|| "run ps")?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(Error::State(format!("ps: {}: {}", output.status, reason.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The title and those lines whose PID column names one of `pids`.
fn table(listing: &str, pids: &HashSet<i32>) -> Result<String> {
    let mut lines = listing.lines();
    let title = lines.next().unwrap_or_default();
    let Some(column) = title.split_whitespace().position(|name| name == "PID") else {
        return Err(Error::State("couldn't find PID field in ps output".to_owned()));
    };
    let mut kept = vec![title];
    for line in lines {
        let field = line.split_whitespace().nth(column);
        if field.and_then(|field| field.parse().ok()).is_some_and(|pid| pids.contains(&pid)) {
            kept.push(line);
        }
    }
    Ok(kept.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_chosen_by_the_column_that_the_title_calls_pid() {
        let listing = "UID PID PPID CMD\nroot 7 1 sh\nroot 17 7 sleep 7\n7 1 7 init\n";
        let shown = table(listing, &HashSet::from([7])).unwrap();
        assert_eq!(shown, "UID PID PPID CMD\nroot 7 1 sh");
        assert!(table("USER COMMAND\nroot sh\n", &HashSet::new()).is_err());
        assert!(table("", &HashSet::new()).is_err());
    }
}
