//! `list`: all containers of the state directory.

use lexopt::Parser;

use super::arguments::{self, switch, text};
use super::journal::Level;
use super::state::State;
use super::store::Entry;
use super::{Context, Error, Result};

pub(super) const USAGE: &str = "list [--format table|json] [--quiet]";

#[derive(Clone, Copy)]
enum Format {
    Table,
    Json,
    Quiet,
}

/// Prints all containers.
pub(super) fn list(context: &Context, parser: &mut Parser) -> Result<u8> {
    let mut format = Format::Table;
    arguments::collect(parser, |flag, parser| {
        match flag {
            "f" | "format" => match text(parser)?.as_str() {
                "table" => format = Format::Table,
                "json" => format = Format::Json,
                other => return Err(Error::Usage(format!("invalid format option {other:?}"))),
            },
            "q" | "quiet" if switch(parser)? => format = Format::Quiet,
            "q" | "quiet" => {}
            _ => return Err(arguments::unknown(flag)),
        }
        Ok(())
    })?;
    let mut found = Vec::new();
    for id in context.store.ids()? {
        let entry = context.store.entry(&id);
        match entry.load() {
            Ok(record) => found.push((record, entry)),
            // Being made, or removed meanwhile.
            Err(Error::NotFound) => {}
            Err(error) => {
                context.journal.say(Level::Warning, &format!("container {id}: {}", error.chain()));
            }
        }
    }
    let mut states: Vec<State<'_>> =
        found.iter().map(|(record, entry)| State::of(record, entry)).collect();
    for (state, (_, entry)) in states.iter_mut().zip(&found) {
        state.owner = owner(entry);
    }
    match format {
        // Plain strings and numbers: encoding cannot fail.
        Format::Json => println!("{}", serde_json::to_string(&states).unwrap_or_default()),
        Format::Quiet => states.iter().for_each(|state| println!("{}", state.id)),
        Format::Table => print!("{}", table(&rows(&states))),
    }
    Ok(0)
}

/// Who made a container. No name is looked up: that is root, or a number.
fn owner(entry: &Entry) -> String {
    match entry.owner() {
        Some(0) => "root".to_owned(),
        Some(uid) => format!("#{uid}"),
        // Deleted meanwhile.
        None => String::new(),
    }
}

fn rows(states: &[State<'_>]) -> Vec<Vec<String>> {
    let heading = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned).to_vec();
    let row = |state: &State<'_>| {
        vec![
            state.id.to_owned(),
            state.pid.to_string(),
            state.status.to_owned(),
            state.bundle.display().to_string(),
            state.created.to_owned(),
            state.owner.clone(),
        ]
    };
    std::iter::once(heading).chain(states.iter().map(row)).collect()
}

/// Columns wide enough for their widest cell, and at least twelve.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count() + 1).max().unwrap_or(0).max(12)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<String>().trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["ID", "PID"], ["a-rather-long-id", "1"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|&cell| cell.to_owned()).collect()).collect();
        assert_eq!(table(&rows), "ID               PID\na-rather-long-id 1\n");
    }
}
