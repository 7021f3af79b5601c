//! The lists of names of the conformance suite (`tests/conformance.tsv`) and of the node conformance suite
//! (`tests/nodeconformance.tsv`) are whole and honest: each name has a test that is there, or a reason
//! why there is none; and the README counts what the lists hold. So is the list of attacks and faults
//! (`tests/reliability.tsv`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Lines of group, name, and the test (`file::function`) or `-` and the reason; and how many names of
/// upstream's 1.36 suites they have: those about the node itself, and those that tables can say.
const LISTS: [(&str, usize); 2] = [
    (include_str!("../../conformance.tsv"), 167),
    (include_str!("../../nodeconformance.tsv"), 186),
];
/// Lines of an attack or a fault, and a test.
const DANGERS: &str = include_str!("../../reliability.tsv");
const README: &str = include_str!("../../../README.md");

struct Row<'a> {
    group: &'a str,
    name: &'a str,
    /// Where it is tested, or why not.
    place: Result<(&'a str, &'a str), &'a str>,
}

fn rows(list: &'static str) -> Vec<Row<'static>> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
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

/// Whether a file has a test of this name.
fn is_test(file: &str, function: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let (plain, asynchronous) = (format!("fn {function}("), format!("async fn {function}("));
    let is_head = |line: &&str| line.starts_with(&plain) || line.starts_with(&asynchronous);
    let Some(at) = lines.iter().position(is_head) else { return false };
    let mut attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
    attributes.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
}

#[test]
fn every_attack_and_fault_that_is_listed_has_a_test_that_is_there() {
    let lines: Vec<_> = DANGERS.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines.len() >= 58, "the list has lost some");
    for line in lines {
        let (danger, place) = line.split_once('\t').expect("two fields");
        let (file, function) = place.split_once("::").expect("file::function");
        assert!(is_test(file, function), "{danger}: no test {function} in {file}");
    }
}

#[test]
fn every_conformance_name_has_a_test_or_a_reason() {
    let mut faults = Vec::new();
    for row in LISTS.into_iter().flat_map(|(list, count)| {
        let rows = rows(list);
        let names: BTreeSet<_> = rows.iter().map(|row| row.name).collect();
        assert_eq!((rows.len(), names.len()), (count, count), "each name once");
        rows
    }) {
        match row.place {
            Err(reason) if reason.trim().is_empty() => {
                faults.push(format!("{}: no reason", row.name))
            }
            Err(_) => {}
            Ok((file, function)) => {
                if !is_test(file, function) {
                    faults.push(format!("{}: no test {function} in {file}", row.name));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_readme_counts_what_the_list_holds() {
    for (list, _) in LISTS {
        let mut groups: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for row in rows(list) {
            for group in [row.group, "all"] {
                let (all, shown) = groups.entry(group).or_default();
                *all += 1;
                *shown += usize::from(row.place.is_ok());
            }
        }
        for (group, (all, shown)) in groups {
            let row = format!("| {group} | {all} | {shown} |");
            assert!(README.contains(&row), "the README does not say {row:?}");
        }
    }
}
