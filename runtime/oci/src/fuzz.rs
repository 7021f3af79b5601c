//! Parsers of foreign input under mutated input: the corpus of `tests/corpus`, one directory a target,
//! changed at random, and what each target promises for any bytes at all.
//!
//! Deterministic and short where every change is tested; `BERTH_FUZZ_SECONDS=3600` runs each target for
//! that long from a seed of its own, which a failure names together with the input.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path};
use std::time::{Duration, Instant, SystemTime};

use crate::cgroup::place::of_process;
use crate::cgroup::stats::Stats;
use crate::container::{identity, plan, sysctl};
use crate::frame::Decoder;
use crate::log::{Splitter, Stream};
use crate::protocol::{CreateContainer, MAX_FRAME_BYTES, Request, ShimConfig, UserSelector};
use crate::runc::record::StatusLine;

const ROUNDS: u32 = 4_000;

/// What parsers tend to stumble over.
const WORDS: [&[u8]; 20] = [
    b"\0",
    b"\n",
    b":",
    b"..",
    b"/",
    b"-1",
    b"0",
    b"4294967296",
    b"2147483648",
    b"1e999",
    b"{}",
    b"[]",
    b"null",
    b"\"",
    b"\\u0000",
    b"\xff\xfe",
    b"18446744073709551616",
    b",",
    b"=",
    b"true",
];

/// xorshift64*: the same numbers from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        (value >> 33) as usize % limit.max(1)
    }
}

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let place = random.below(input.len() + 1);
        let end = (place + random.below(16)).min(input.len());
        match random.below(6) {
            0 if place < input.len() => input[place] ^= 1 << random.below(8),
            1 => drop(input.drain(place..end)),
            2 => {
                let word = WORDS[random.below(WORDS.len())];
                input.splice(place..end, word.iter().copied());
            }
            3 => {
                let word = WORDS[random.below(WORDS.len())];
                input.splice(place..place, word.iter().copied());
            }
            4 => {
                let piece = input[place..end].to_vec();
                input.splice(place..place, piece);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                let to = (from + random.below(64)).min(other.len());
                input.splice(place..end, other[from..to].iter().copied());
            }
        }
    }
    input
}

/// Runs a target over its corpus, then over what becomes of it.
fn fuzz(target: &str, check: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut files: Vec<_> =
        directory.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    corpus.iter().for_each(|input| check(input));
    let seconds = std::env::var("BERTH_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let seed = match seconds {
        None => 0x5eed,
        Some::<u64>(_) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.unwrap().as_nanos() as u64 | 1
        }
    };
    let deadline = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let mut random = Random(seed);
    let mut round = 0;
    while seconds.map_or(round < ROUNDS, |_| Instant::now() < deadline) {
        round += 1;
        let input = mutate(&mut random, &corpus);
        if catch_unwind(AssertUnwindSafe(|| check(&input))).is_err() {
            let shown = input.escape_ascii();
            panic!("{target} fails with seed {seed} in round {round} for b\"{shown}\"");
        }
    }
}

#[test]
fn any_specification_is_planned_or_refused() {
    let sandbox: ShimConfig = serde_json::from_value(serde_json::json!({
        "sandbox_id": "s", "cgroup_root": "/sys/fs/cgroup", "hostname": null,
        "new_network": true, "new_ipc": true, "pid": "container"
    }))
    .unwrap();
    let rest = br#","id":"c","rootfs":{"directory":"/r"},"cgroup_path":"a/b","user":{"user":"","group":null,
        "supplemental_groups":[],"strict_groups":false},"stdio":{"log_path":"/l","log_max_bytes":1,
        "log_max_files":1,"tty":false,"stdin":false,"stdin_once":false}}"#;
    let accepted = std::cell::Cell::new(0);
    fuzz("spec", |input| {
        let text = [br#"{"spec":"#.as_slice(), input, rest].concat();
        let Ok(request) = serde_json::from_slice::<CreateContainer>(&text) else { return };
        let Ok(plan) = plan::plan(&sandbox, &request) else { return };
        accepted.set(accepted.get() + 1);
        for mount in &plan.mounts {
            let plain = |part| matches!(part, Component::Normal(_));
            assert!(mount.destination.components().all(plain), "{:?}", mount.destination);
        }
        let sysctls = plan.sysctls.iter().map(|one| &one.path);
        sysctls.for_each(|path| assert!(path.starts_with("sys"), "{path:?}"));
        assert!(!plan.process.arguments.is_empty());
    });
    assert!(accepted.get() > 100, "only {} inputs got past the parser", accepted.get());
}

#[test]
fn any_stream_is_cut_into_the_same_messages_however_it_arrives() {
    let messages = |chunks: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = Decoder::default();
        let mut heard = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            loop {
                match decoder.next_message::<Request>() {
                    Ok(Some(message)) => heard.push(message),
                    Ok(None) => break,
                    Err(_) => return heard,
                }
            }
        }
        heard
    };
    fuzz("frame", |input| {
        let whole = messages(&mut std::iter::once(input));
        assert_eq!(messages(&mut input.chunks(1)), whole);
        assert!(input.len() < MAX_FRAME_BYTES);
    });
}

#[test]
fn no_databases_make_digits_a_name_or_an_id_too_large() {
    fuzz("passwd", |input| {
        let text = String::from_utf8_lossy(input);
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let (passwd, group) = rest.split_once("\n\n").unwrap_or((rest, rest));
        let selector = UserSelector { user: first.to_owned(), ..UserSelector::default() };
        let Ok(found) = identity::resolve(&selector, passwd, group) else { return };
        let user = first.split(':').next().unwrap_or_default();
        if !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_digit()) {
            assert_eq!(Ok(found.user.uid), user.parse());
        }
        let mut ids = found.user.supplemental_groups.clone();
        ids.extend([found.user.uid, found.user.gid]);
        assert!(ids.iter().all(|id| *id <= i32::MAX as u32), "{ids:?}");
        assert!(!found.home.is_some_and(|home| home.chars().any(char::is_control)));
    });
}

#[test]
fn any_output_is_logged_whole() {
    fuzz("output", |input| {
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut rebuilt = Vec::new();
        let mut take = |record: &[u8]| {
            let (head, text) = record.split_at(b"T stdout F ".len());
            let text = text.strip_suffix(b"\n").expect("a record ends its line");
            assert!(!text.contains(&b'\n'), "{record:?}");
            rebuilt.extend_from_slice(text);
            if head.ends_with(b"F ") {
                rebuilt.push(b'\n');
            }
        };
        for chunk in input.chunks(7 + input.len() % 5_000) {
            splitter.push(chunk, "T", &mut take);
        }
        splitter.finish("T", &mut take);
        assert_eq!(rebuilt, input);
    });
}

#[test]
fn any_profile_becomes_a_program_that_ends() {
    let accepted = std::cell::Cell::new(0);
    fuzz("seccomp", |input| {
        let Ok(profile) = serde_json::from_slice(input) else { return };
        let Ok(program) = crate::seccomp::compile(&profile) else { return };
        accepted.set(accepted.get() + 1);
        let count = program.instructions.len();
        assert!((1..=4096).contains(&count), "{count}");
        for (index, one) in program.instructions.iter().enumerate() {
            let furthest = match one.code {
                code if code == (libc::BPF_JMP | libc::BPF_JA) as u16 => one.operand as usize,
                _ => usize::from(one.jump_true.max(one.jump_false)),
            };
            let returns = one.code & 7 == libc::BPF_RET as u16;
            assert!(returns || index + 1 + furthest < count, "{index}: {one:?}");
        }
    });
    assert!(accepted.get() > 100, "only {} inputs got past the parser", accepted.get());
}

#[test]
fn any_sysctl_is_a_path_below_its_directory_or_refused() {
    fuzz("sysctl", |input| {
        let text = String::from_utf8_lossy(input);
        let (name, value) = text.split_once('=').unwrap_or((&text, "1"));
        let Ok(sysctl) = sysctl::parse(name, value) else { return };
        let plain = |part| matches!(part, Component::Normal(_));
        assert!(sysctl.path.components().all(plain), "{:?}", sysctl.path);
        assert!(sysctl.path.starts_with("sys") && !sysctl.value.contains('\n'));
    });
}

#[test]
fn any_files_of_a_cgroup_are_counters_that_can_be_told() {
    let told = std::cell::Cell::new(0);
    fuzz("cgroup", |input| {
        let text = String::from_utf8_lossy(input);
        let stats = serde_json::to_value(Stats::of_any(&text)).expect("counters are plain");
        let pressure = &stats["cpu"]["psi"]["some"]["avg10"];
        assert!(pressure.as_f64().is_some_and(f64::is_finite), "{pressure}");
        for entry in stats["blkio"]["ioServicedRecursive"].as_array().into_iter().flatten() {
            assert!(matches!(entry["op"].as_str(), Some("Read" | "Write")), "{entry}");
            told.set(told.get() + 1);
        }
    });
    assert!(told.get() > 100, "only {} counters were found", told.get());
}

#[test]
fn any_list_of_cgroups_leads_below_the_hierarchy_or_nowhere() {
    fuzz("process", |input| {
        let text = String::from_utf8_lossy(input);
        let Some(path) = of_process(Path::new("/c"), &text) else { return };
        let mut parts = path.components();
        assert_eq!(parts.by_ref().take(2).collect::<std::path::PathBuf>(), Path::new("/c"));
        assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{path:?}");
        assert!(!path.to_string_lossy().contains('\n'), "{path:?}");
    });
}

#[test]
fn any_status_of_a_process_is_read_behind_its_name() {
    fuzz("process", |input| {
        let text = String::from_utf8_lossy(input);
        let behind = text.rsplit_once(')').map(|(_, behind)| behind);
        if let Some(line) = StatusLine::parse(&text) {
            let state = line.state;
            assert!(behind.is_some_and(|rest| rest.trim_start().starts_with(state)), "{text:?}");
        }
    });
}

#[test]
fn any_answer_of_route_netlink_is_links_and_addresses_of_its_own_bytes() {
    let found = std::cell::Cell::new(0);
    fuzz("netlink", |input| {
        let (links, addresses) = crate::netlink::read_all(input);
        assert!(links.len() + addresses.len() <= input.len() / 8);
        assert!(links.iter().all(|link| !link.name.contains(&0)));
        found.set(found.get() + links.len());
    });
    assert!(found.get() > 100, "only {} links were found", found.get());
}
