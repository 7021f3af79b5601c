//! What a container under the default profile reaches of the kernel: every system call number of every
//! ABI, called, against a list written down by hand (`golden/refused_syscalls.txt`).
//!
//! That the filter says what the profile says is `seccomp/`'s; here nothing but the kernel's answers
//! counts.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::collections::{BTreeMap, BTreeSet};

use fixture::{Shim, compile, sandbox, spec_with};
use serde_json::json;

/// Well past the newest call.
const LAST: u32 = 600;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// By ABI and number; absent where the call did not come back.
type Answers = BTreeMap<(String, u32), Option<u32>>;

fn probe(shim: &mut Shim, id: &str, seccomp: Option<serde_json::Value>) -> Answers {
    let last = LAST.to_string();
    let args = ["/bin/probe", &last];
    let mut request = shim.container(id, &args);
    request.spec = spec_with(&args, |spec| {
        if let Some(seccomp) = seccomp {
            spec["linux"]["seccomp"] = seccomp;
        }
    });
    let (exit, text) = shim.run_request(request);
    assert_eq!(exit.exit_code, 0, "{text}");
    let lines = text.lines().map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        ((fields[0].to_owned(), fields[1].parse().unwrap()), fields[2].parse().ok())
    });
    lines.collect()
}

/// Names by number: of one column of the table of system calls.
fn names(column: usize) -> BTreeMap<u32, &'static str> {
    let lines = include_str!("../src/seccomp/syscalls.tsv").lines();
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            Some((fields[column].parse().ok()?, fields[0]))
        })
        .collect()
}

/// The names that follow `abi:` in the golden list.
fn refused(abi: &str) -> BTreeSet<&'static str> {
    let sections = include_str!("golden/refused_syscalls.txt").split("\n\n");
    let found = sections.filter_map(|section| section.strip_prefix(&format!("{abi}:")));
    found.flat_map(str::split_whitespace).collect()
}

#[test]
fn a_container_reaches_the_system_calls_of_the_list_and_no_other() {
    let mut shim = Shim::start(&sandbox());
    compile("probe", &shim.image());
    let confined = probe(&mut shim, "confined", None);
    let free = probe(&mut shim, "free", Some(json!(null)));
    let calls = 3 * (LAST as usize + 1);
    assert_eq!((confined.len(), free.len()), (calls, calls));
    let abis = [("native", names(1)), ("compat", names(2)), ("x32", BTreeMap::new())];
    let mut wrong = Vec::new();
    for (abi, names) in &abis {
        let refused = refused(abi);
        for number in 0..=LAST {
            let key = (abi.to_string(), number);
            let (with, without) = (confined[&key], free[&key]);
            let reached = !matches!(with, Some(EPERM | ENOSYS));
            let name = names.get(&number).copied();
            let allowed = name.is_some_and(|name| !refused.contains(name));
            let fits = if allowed { reached || with == without } else { !reached };
            if !fits {
                wrong.push(format!("{abi} {number} {name:?}: {with:?}, unconfined {without:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    shim.shut_down();
}
