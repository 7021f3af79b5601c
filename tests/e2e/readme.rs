//! Every command of the README is run by a test: here, that none is there which no test knows.

use std::collections::BTreeSet;

const README: &str = include_str!("../../README.md");

/// The commands of the README's code blocks, and the test that runs each.
const RUN_BY: [(&str, &str); 0] = [];

/// The lines of the README's `sh` code blocks, without comments and prompts.
fn commands() -> BTreeSet<&'static str> {
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in README.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => {
                let command = line.split(" #").next().unwrap_or_default().trim();
                if !command.is_empty() && !command.starts_with('#') {
                    found.insert(command);
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn every_command_of_the_readme_is_run_by_a_test() {
    let known: BTreeSet<_> = RUN_BY.iter().map(|(command, _)| *command).collect();
    let commands = commands();
    assert!(!commands.is_empty());
    let unknown: Vec<_> = commands.difference(&known).collect();
    let gone: Vec<_> = known.difference(&commands).collect();
    assert!(
        unknown.is_empty() && gone.is_empty(),
        "not run: {unknown:?}; not in the README: {gone:?}"
    );
}
