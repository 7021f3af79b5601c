//! `events`: a container's counters now and then, and its kills for want of memory, one JSON a line.

use std::io::Write;

use lexopt::Parser;
use serde::Serialize;

use super::arguments::{self, switch, text};
use super::error::During;
use super::record::Status;
use super::{Context, Error, Result};
use crate::cgroup::{Cgroup, Happening, Stats};
use crate::clock;

pub(super) const USAGE: &str = "events [--stats] [--interval DURATION] ID
  --stats               print the counters once and end
  --interval DURATION   between counters, such as 500ms or 1m30s (5s)";

const DEFAULT_INTERVAL_MS: u64 = 5000;

#[derive(Serialize)]
struct Event<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

/// Prints events until the container's last process has ended.
pub(super) fn events(context: &Context, parser: &mut Parser) -> Result<u8> {
    let (mut interval_ms, mut once) = (DEFAULT_INTERVAL_MS, false);
    let values = arguments::collect(parser, |flag, parser| {
        match flag {
            "interval" => interval_ms = parse_duration(&text(parser)?)?,
            "stats" => once = switch(parser)?,
            _ => return Err(arguments::unknown(flag)),
        }
        Ok(())
    })?;
    let entry = context.store.entry(&arguments::only_id(&values)?);
    let record = entry.load()?;
    if matches!(record.status(&entry), Status::Stopped | Status::Creating) {
        return Err(Error::State(format!("container with id {} is not running", record.id)));
    }
    let cgroup = Cgroup::open(&record.cgroup)?;
    let print = |r#type, data| print(&Event { r#type, id: &record.id, data });
    if once {
        print("stats", Some(cgroup.stats()?))?;
        return Ok(0);
    }
    let mut watch = cgroup.watch()?;
    let mut next_ms = clock::monotonic_ms() + interval_ms;
    loop {
        let happening = watch.wait(next_ms).during(|| "wait for events")?;
        match happening {
            Happening::Empty => return Ok(0),
            Happening::OomKill => print("oom", None)?,
            Happening::Elapsed => {
                next_ms = clock::monotonic_ms() + interval_ms;
                match cgroup.stats() {
                    Ok(stats) => print("stats", Some(stats))?,
                    // The cgroup has gone between, which the next wait tells.
                    Err(_) => continue,
                }
            }
        }
    }
}

fn print(event: &Event<'_>) -> Result<()> {
    // Numbers and strings: encoding cannot fail.
    let line = serde_json::to_string(event).unwrap_or_default();
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).during(|| "print an event")
}

/// A duration as Go writes it: numbers with units, one after the other. In milliseconds, above zero.
fn parse_duration(text: &str) -> Result<u64> {
    const UNITS: [(&str, f64); 7] = [
        ("ms", 1.0),
        ("us", 1e-3),
        ("µs", 1e-3),
        ("ns", 1e-6),
        ("s", 1e3),
        ("m", 6e4),
        ("h", 3.6e6),
    ];
    let refuse = || Error::Usage(format!("invalid duration {text:?}"));
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let number: f64 = rest[..end].parse().map_err(|_| refuse())?;
        let unit = &rest[end..];
        let (name, factor) =
            UNITS.into_iter().find(|(name, _)| unit.starts_with(name)).ok_or_else(refuse)?;
        total += number * factor;
        rest = &unit[name.len()..];
    }
    if total > 0.0 && total < 1e15 {
        return Ok((total as u64).max(1));
    }
    Err(Error::Usage("duration interval must be greater than 0".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, milliseconds) in
            [("5s", 5000), ("500ms", 500), ("1m30s", 90_000), ("1.5h", 5_400_000), ("1us", 1)]
        {
            assert_eq!(parse_duration(text).unwrap(), milliseconds, "{text}");
        }
        for text in ["", "5", "0s", "-1s", "s", "1x", "1..5s", "9999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_oom_event_has_no_data() {
        let event = Event { r#type: "oom", id: "x", data: None };
        assert_eq!(serde_json::to_string(&event).unwrap(), r#"{"type":"oom","id":"x"}"#);
    }
}
