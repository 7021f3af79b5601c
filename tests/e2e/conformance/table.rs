//! The list of conformance names (`tests/conformance.tsv`) is whole and honest: each name has a test
//! that is there, or a reason why there is none; and the README counts what the list holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Group, name, and the test (`file::function`) or `-` and the reason.
const LIST: &str = include_str!("../../conformance.tsv");
const README: &str = include_str!("../../../README.md");

/// How many names of upstream's 1.36 suite are about the node itself.
const NAMES: usize = 167;

struct Row<'a> {
    group: &'a str,
    name: &'a str,
    /// Where it is tested, or why not.
    place: Result<(&'a str, &'a str), &'a str>,
}

fn rows() -> Vec<Row<'static>> {
    let lines = LIST.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let [group, name, place] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line:?} has not three fields");
            };
            let place = match place.strip_prefix("- ") {
                Some(reason) => Err(reason),
                None => Ok(place.split_once("::").expect("file::function")),
            };
            Row { group, name, place }
        })
        .collect()
}

#[test]
fn every_conformance_name_has_a_test_or_a_reason() {
    let rows = rows();
    let names: BTreeSet<_> = rows.iter().map(|row| row.name).collect();
    assert_eq!((rows.len(), names.len()), (NAMES, NAMES), "each name once");
    let mut faults = Vec::new();
    for row in &rows {
        match row.place {
            Err(reason) if reason.trim().is_empty() => {
                faults.push(format!("{}: no reason", row.name))
            }
            Err(_) => {}
            Ok((file, function)) => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
                let text = fs::read_to_string(&path).unwrap_or_default();
                if !text.contains(&format!("#[test]\nfn {function}()")) {
                    faults.push(format!("{}: no test {function} in {file}", row.name));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_readme_counts_what_the_list_holds() {
    let mut groups: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for row in rows() {
        let (all, shown) = groups.entry(row.group).or_default();
        *all += 1;
        *shown += usize::from(row.place.is_ok());
    }
    let (all, shown) =
        groups.values().fold((0, 0), |sum, group| (sum.0 + group.0, sum.1 + group.1));
    for (group, (all, shown)) in
        groups.iter().map(|(group, counts)| (*group, *counts)).chain([("all", (all, shown))])
    {
        let row = format!("| {group} | {all} | {shown} |");
        assert!(README.contains(&row), "the README does not say {row:?}");
    }
}
