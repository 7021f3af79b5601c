//! `berth audit`: the items of the CIS Kubernetes Benchmark (1.10) about worker nodes, held against this
//! host: its files, the configuration that the agent is given, and what listens.
//!
//! [`facts`] reads, [`items`] judges and is pure. The agent need not run; where it would refuse a
//! configuration, the item fails all the same.

mod facts;
mod items;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::cli::{AuditFlags, OutputForm};
use crate::pods::table;
use items::{State, Verdict};

/// Prints every item with its verdict; fails where one does.
pub(crate) fn run(flags: &AuditFlags) -> Result<ExitCode> {
    let verdicts = items::judge(&facts::read(flags)?);
    match flags.output {
        OutputForm::Json => println!("{}", serde_json::to_string_pretty(&report(&verdicts))?),
        OutputForm::Table => print!("{}", text(&verdicts)),
    }
    Ok(ExitCode::from(u8::from(verdicts.iter().any(|v| v.state == State::Fail))))
}

fn count(verdicts: &[Verdict], state: State) -> usize {
    verdicts.iter().filter(|verdict| verdict.state == state).count()
}

fn report(verdicts: &[Verdict]) -> serde_json::Value {
    let items: Vec<_> = verdicts
        .iter()
        .map(|verdict| {
            json!({
                "item": verdict.item.number,
                "title": verdict.item.title,
                "state": verdict.state.name(),
                "found": verdict.found,
                "mend": (verdict.state != State::Pass).then_some(verdict.item.mend),
            })
        })
        .collect();
    let totals = [State::Pass, State::Fail, State::Warn];
    let totals: serde_json::Map<_, _> = totals
        .into_iter()
        .map(|state| (state.name().to_lowercase(), count(verdicts, state).into()))
        .collect();
    json!({"benchmark": "CIS Kubernetes 1.10", "items": items, "totals": totals})
}

fn text(verdicts: &[Verdict]) -> String {
    let mut rows = vec![["ITEM", "STATE", "TITLE", "FOUND"].map(str::to_owned)];
    rows.extend(verdicts.iter().map(|verdict| {
        let item = verdict.item;
        [item.number, verdict.state.name(), item.title, verdict.found.as_str()].map(str::to_owned)
    }));
    let mut text = table(&rows);
    for verdict in verdicts.iter().filter(|verdict| verdict.state != State::Pass) {
        text.push_str(&format!("mend {}: {}\n", verdict.item.number, verdict.item.mend));
    }
    text.push_str(&format!(
        "{} pass, {} fail, {} warn\n",
        count(verdicts, State::Pass),
        count(verdicts, State::Fail),
        count(verdicts, State::Warn)
    ));
    text
}
