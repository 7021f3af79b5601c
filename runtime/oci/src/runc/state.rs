//! `state`: what a container is now. OCI runtime spec, `runtime.md`, State.

use std::collections::BTreeMap;
use std::path::Path;

use lexopt::Parser;
use serde::Serialize;

use super::arguments;
use super::record::{Record, Status};
use super::store::Entry;
use super::{Context, Result};

pub(super) const USAGE: &str = "state ID";

/// A container's state as it is told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State<'a> {
    oci_version: &'a str,
    pub(super) id: &'a str,
    /// 0 once it has stopped.
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: &'a Path,
    rootfs: &'a Path,
    pub(super) created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    /// Told in lists only, as callers read it.
    pub(super) owner: String,
}

impl<'a> State<'a> {
    /// Looks at a container.
    pub(super) fn of(record: &'a Record, entry: &Entry) -> Self {
        Self::with(record, record.status(entry))
    }

    /// The state where the status is known.
    pub(super) fn with(record: &'a Record, status: Status) -> Self {
        let pid = record.init.filter(|_| status != Status::Stopped).map_or(0, |init| init.pid);
        Self {
            oci_version: &record.oci_version,
            id: &record.id,
            pid,
            status: status.name(),
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations: &record.annotations,
            owner: String::new(),
        }
    }
}

/// Prints a container's state.
pub(super) fn state(context: &Context, parser: &mut Parser) -> Result<u8> {
    let values = arguments::collect(parser, |flag, _| Err(arguments::unknown(flag)))?;
    let entry = context.store.entry(&arguments::only_id(&values)?);
    let record = entry.load()?;
    print_json(&State::of(&record, &entry));
    Ok(0)
}

/// Prints JSON for people and programs.
pub(super) fn print_json(value: &impl Serialize) {
    // Plain strings and numbers: encoding cannot fail.
    println!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
}
