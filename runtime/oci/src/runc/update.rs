//! `update`: other limits for a running container.
//!
//! What is not spoken of stays as the container was made with or last updated to; the container's
//! specification in the state directory is changed along, for the next update.

use std::io::Read;

use lexopt::Parser;
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use super::arguments::{self, path, text};
use super::error::During;
use super::record::Status;
use super::store::Held;
use super::{Context, Error, Result};
use crate::cgroup::{Cgroup, merge};
use crate::spec;

pub(super) const USAGE: &str = "update [option...] ID
  --resources, -r FILE       JSON as in linux.resources, - for standard input; other options are then
                             not used
  --memory BYTES             memory limit, such as 512M; -1 for none
  --memory-reservation BYTES memory kept from others' need
  --memory-swap BYTES        memory and swap together; -1 for no limit
  --cpu-period US, --cpu-quota US, --cpu-burst US, --cpu-share N, --cpu-idle 0|1
  --cpuset-cpus LIST, --cpuset-mems LIST
  --pids-limit N             -1 for none
  --blkio-weight N           10 to 1000";

/// Options, the place of their value in the resources, and how it is written.
const OPTIONS: [(&str, &str, Kind); 16] = [
    ("blkio-weight", "/blockIO/weight", Kind::Number),
    ("cpu-period", "/cpu/period", Kind::Number),
    ("cpu-quota", "/cpu/quota", Kind::Number),
    ("cpu-burst", "/cpu/burst", Kind::Number),
    ("cpu-share", "/cpu/shares", Kind::Number),
    ("cpu-idle", "/cpu/idle", Kind::Number),
    ("cpu-rt-period", "/cpu/realtimePeriod", Kind::Number),
    ("cpu-rt-runtime", "/cpu/realtimeRuntime", Kind::Number),
    ("cpuset-cpus", "/cpu/cpus", Kind::Text),
    ("cpuset-mems", "/cpu/mems", Kind::Text),
    ("kernel-memory", "/memory/kernel", Kind::Bytes),
    ("kernel-memory-tcp", "/memory/kernelTCP", Kind::Bytes),
    ("memory", "/memory/limit", Kind::Bytes),
    ("memory-reservation", "/memory/reservation", Kind::Bytes),
    ("memory-swap", "/memory/swap", Kind::Bytes),
    ("pids-limit", "/pids/limit", Kind::Number),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Bytes,
    Text,
}

/// Puts a container under other limits. On failure the old ones are written again.
pub(super) fn update(context: &Context, parser: &mut Parser) -> Result<u8> {
    let mut from_options = json!({});
    let mut file = None;
    let values = arguments::collect(parser, |flag, parser| {
        match flag {
            "r" | "resources" => file = Some(path(parser)?),
            "l3-cache-schema" | "mem-bw-schema" => {
                drop(text(parser)?);
                let reason = format!("Intel RDT is not supported: --{flag}");
                return Err(Error::State(reason));
            }
            _ => set(&mut from_options, flag, parser)?,
        }
        Ok(())
    })?;
    let wanted = match file {
        Some(path) if path.as_os_str() == "-" => {
            let mut input = Vec::new();
            std::io::stdin().read_to_end(&mut input).during(|| "read standard input")?;
            parse(&input, "standard input")?
        }
        Some(path) => {
            let name = path.display().to_string();
            parse(&std::fs::read(&path).during(|| format!("read {name}"))?, &name)?
        }
        None => from_options,
    };
    let held = context.store.entry(&arguments::only_id(&values)?).hold()?;
    let record = held.entry().load()?;
    if matches!(record.status(held.entry()), Status::Stopped | Status::Creating) {
        return Err(Error::State("container not running".to_owned()));
    }
    change(&held, &Cgroup::open(&record.cgroup)?, &wanted)?;
    Ok(0)
}

/// Takes an option's value into the resources.
fn set(resources: &mut Value, flag: &str, parser: &mut Parser) -> Result<()> {
    let found = OPTIONS.into_iter().find(|(name, ..)| *name == flag);
    let Some((_, place, kind)) = found else { return Err(arguments::unknown(flag)) };
    let text = text(parser)?;
    if text.is_empty() {
        return Ok(());
    }
    let refuse = || Error::Usage(format!("invalid value for {flag}: {text:?}"));
    let value = match kind {
        Kind::Number => json!(text.parse::<i64>().map_err(|_| refuse())?),
        Kind::Bytes => json!(parse_bytes(&text).ok_or_else(refuse)?),
        Kind::Text => json!(text),
    };
    let (part, field) = place[1..].split_once('/').unwrap_or_default();
    resources[part][field] = value;
    Ok(())
}

/// A count of bytes such as `1.5g` or `512KiB`, by powers of 1024; -1 for no limit.
fn parse_bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = text[end..].trim_start_matches(' ').to_ascii_lowercase();
    let factor = match unit.strip_suffix('b').unwrap_or(&unit) {
        "" => 0,
        "k" | "ki" => 1,
        "m" | "mi" => 2,
        "g" | "gi" => 3,
        "t" | "ti" => 4,
        "p" | "pi" => 5,
        _ => return None,
    };
    let factor = 1024i64.pow(factor);
    let number = &text[..end];
    match number.parse::<i64>() {
        Ok(number) => number.checked_mul(factor),
        Err(_) => {
            let bytes = number.parse::<f64>().ok()? * factor as f64;
            (bytes < i64::MAX as f64).then_some(bytes as i64)
        }
    }
}

fn parse(text: &[u8], name: &str) -> Result<Value> {
    let damaged = |reason: String| Error::File { path: name.into(), reason };
    let value: Value = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
    // Of the right types before anything is done with it.
    let typed = serde_json::from_slice::<LinuxResources>(text);
    typed.map_err(|error| damaged(error.to_string()))?;
    match value.is_object() {
        true => Ok(value),
        false => Err(damaged("an object is expected".to_owned())),
    }
}

fn change(held: &Held, cgroup: &Cgroup, wanted: &Value) -> Result<()> {
    let damaged = |reason: String| Error::File { path: "config.json".into(), reason };
    let mut config: Value = serde_json::from_slice(&held.entry().config()?)
        .map_err(|error| damaged(error.to_string()))?;
    let current = config["linux"]["resources"].clone();
    let merged = merge::merge(&current, wanted)?;
    let version = config["ociVersion"].as_str().unwrap_or_default().to_owned();
    let typed = |value: &Value| {
        let mut value = value.clone();
        // The device filter is left alone where it is to stay as it is: others may have added to it.
        if let Some(object) = value.as_object_mut()
            && object.get("devices") == current.get("devices")
        {
            object.remove("devices");
        }
        let resources = spec::typed::<Option<LinuxResources>>(&value);
        let resources = resources.map_err(|error| damaged(error.to_string()))?;
        let mut resources = resources.unwrap_or_default();
        spec::settle_pids(&version, &mut resources);
        Ok::<_, Error>(resources)
    };
    if let Err(error) = cgroup.update(&typed(&merged)?) {
        // What was refused counts; the old limits were taken before.
        let _ = cgroup.update(&typed(&current)?);
        return Err(error.into());
    }
    config["linux"]["resources"] = merged;
    held.keep_config(&serde_json::to_vec(&config).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Value> {
        let mut parser = Parser::from_args(line.split_whitespace());
        let mut resources = json!({});
        arguments::collect(&mut parser, |flag, parser| set(&mut resources, flag, parser))?;
        Ok(resources)
    }

    #[test]
    fn options_have_their_place_in_the_resources() {
        let line = "--memory 512M --memory-swap=-1 --cpu-share 5 --cpuset-cpus 0-1 --pids-limit -1";
        let expected = json!({
            "memory": {"limit": 512 << 20, "swap": -1},
            "cpu": {"shares": 5, "cpus": "0-1"},
            "pids": {"limit": -1},
        });
        assert_eq!(options(line).unwrap(), expected);
        for (name, ..) in OPTIONS {
            let resources = options(&format!("--{name}=10")).unwrap();
            serde_json::from_value::<LinuxResources>(resources).unwrap();
        }
        for line in ["--memory x", "--cpu-quota 1M", "--cpu-share", "--unknown 1"] {
            assert!(options(line).is_err(), "{line}");
        }
    }

    #[test]
    fn bytes_are_counted_by_powers_of_1024() {
        for (text, bytes) in [
            ("-1", -1),
            ("7", 7),
            ("1k", 1024),
            ("2KB", 2048),
            ("3MiB", 3 << 20),
            ("1.5g", 3 << 29),
            ("1 t", 1 << 40),
            ("1P", 1 << 50),
            ("8b", 8),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "-2", "m", "1x", "1.2.3k", "99999999999P", "1kk"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
