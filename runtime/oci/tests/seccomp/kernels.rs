//! Filters for kernels that these tests do not run on: compiled here, interpreted here, and held against
//! what libseccomp makes for the same kernel.

use berth_oci::seccomp::{Error, PLATFORMS, Platform, compile, compile_for};
use oci_spec::runtime::{Arch, LinuxSeccomp};
use serde_json::{Value, json};

use super::{ENOSYS, VALUES, compare_on, interpret, is_narrow, known, sys};

/// Numbers by name: a file, and the architectures of its columns.
const TABLES: [(&str, &[Arch]); 7] = [
    (
        include_str!("../../src/seccomp/syscalls.tsv"),
        &[Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
    ),
    (
        include_str!("../../src/seccomp/numbers/arm.tsv"),
        &[Arch::ScmpArchAarch64, Arch::ScmpArchArm],
    ),
    (
        include_str!("../../src/seccomp/numbers/mips.tsv"),
        &[Arch::ScmpArchMips64, Arch::ScmpArchMips64n32, Arch::ScmpArchMips],
    ),
    (
        include_str!("../../src/seccomp/numbers/parisc.tsv"),
        &[Arch::ScmpArchParisc64, Arch::ScmpArchParisc],
    ),
    (
        include_str!("../../src/seccomp/numbers/powerpc.tsv"),
        &[Arch::ScmpArchPpc64, Arch::ScmpArchPpc],
    ),
    (include_str!("../../src/seccomp/numbers/riscv.tsv"), &[Arch::ScmpArchRiscv64]),
    (
        include_str!("../../src/seccomp/numbers/s390.tsv"),
        &[Arch::ScmpArchS390x, Arch::ScmpArchS390],
    ),
];

/// Calls that kernels came to know after libseccomp 2.5.
const LATER: [&str; 3] = ["_llseek", "cacheflush", "memfd_secret"];

fn with_architectures(mut profile: Value, architectures: &[Arch]) -> LinuxSeccomp {
    profile["architectures"] = json!(architectures);
    known(serde_json::from_value(profile).unwrap())
}

/// Every selection of a kernel's ABIs, the native one always among them.
fn selections(platform: &Platform) -> Vec<Vec<Arch>> {
    let (native, others) = platform.abis.split_first().unwrap();
    let chosen = |bits: usize| {
        let some = others.iter().enumerate().filter(move |(place, _)| bits & (1 << place) != 0);
        let some = some.map(|(_, abi)| abi.architecture);
        std::iter::once(native.architecture).chain(some).collect()
    };
    (0..1 << others.len()).map(chosen).collect()
}

#[test]
fn numbers_are_those_that_libseccomp_knows() {
    let mut compared = 0;
    for (table, columns) in TABLES {
        for line in table.lines() {
            let (name, numbers) = line.split_once('\t').unwrap();
            for (number, architecture) in numbers.split('\t').zip(columns) {
                let theirs = sys::number(*architecture as u32, name);
                // It has numbers of its own for what some ABIs make through another call, and for what
                // it does not know.
                let Ok(theirs) = u32::try_from(theirs) else { continue };
                let theirs =
                    if *architecture == Arch::ScmpArchX32 { theirs & !(1 << 30) } else { theirs };
                assert!(
                    number.parse() == Ok(theirs) || LATER.contains(&name),
                    "{architecture} {name} {number} {theirs}"
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 4_000, "{compared}");
}

#[test]
fn what_libseccomp_numbers_is_in_the_tables() {
    for (table, columns) in TABLES {
        for (column, architecture) in columns.iter().enumerate() {
            let ours: Vec<&str> = table
                .lines()
                .filter(|line| line.split('\t').nth(column + 1) != Some("-"))
                .filter_map(|line| line.split('\t').next())
                .collect();
            for number in 0..7_000 {
                let marked =
                    if *architecture == Arch::ScmpArchX32 { number | 1 << 30 } else { number };
                let Some(name) = sys::name(*architecture as u32, marked) else { continue };
                let is_known = ours.contains(&name.as_str()) || LATER.contains(&name.as_str());
                assert!(is_known, "{architecture} {number} {name}");
            }
        }
    }
}

#[test]
fn every_kernel_s_filters_give_libseccomp_s_verdicts() {
    let condition = |index: u32, operator: &str, value: u64, second: u64| json!({"index": index, "op": format!("SCMP_CMP_{operator}"), "value": value, "valueTwo": second});
    let values = [39, 0x1_0000_0028, 0xffff_ffff];
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    // Of different calls, as libseccomp has its own order for several conditions of one.
    let names = [
        "read",
        "write",
        "ioctl",
        "clone",
        "kill",
        "prctl",
        "kcmp",
        "fcntl",
        "personality",
        "openat",
        "close",
        "fchdir",
        "getpid",
        "ptrace",
        "setsid",
        "umask",
        "sync",
        "acct",
        "mount",
        "reboot",
        "flock",
    ];
    for platform in PLATFORMS {
        let narrow = platform.abis.iter().any(|abi| is_narrow(abi.architecture));
        for architectures in selections(platform) {
            for (default, action) in
                [("ERRNO", "ALLOW"), ("ALLOW", "ERRNO"), ("TRACE", "KILL_PROCESS")]
            {
                let mut rules = vec![json!({
                    "names": ["socket", "recvmsg", "accept4", "shmget", "semop", "sendmmsg", "openat2"],
                    "action": format!("SCMP_ACT_{action}")
                })];
                let pairs = values.iter().flat_map(|value| operators.map(|one| (*value, one)));
                for (name, (value, operator)) in names.iter().zip(pairs) {
                    let value = if narrow { value & 0xffff_ffff } else { value };
                    let arguments = [condition(2, operator, value, value & 8)];
                    rules.push(json!({
                        "names": [name], "action": format!("SCMP_ACT_{action}"), "args": arguments
                    }));
                }
                let profile = json!({
                    "defaultAction": format!("SCMP_ACT_{default}"), "syscalls": rules
                });
                compare_on(platform, &with_architectures(profile, &architectures), &VALUES);
            }
        }
    }
}

#[test]
fn the_default_rules_give_libseccomp_s_verdicts_on_every_kernel() {
    let rules = serde_json::to_value(berth_oci::default_seccomp(&Default::default())).unwrap();
    for platform in PLATFORMS {
        let all: Vec<Arch> = platform.abis.iter().map(|abi| abi.architecture).collect();
        let mut profile = with_architectures(rules.clone(), &all);
        let mut syscalls = profile.syscalls().clone().unwrap();
        for syscall in &mut syscalls {
            let names = syscall.names().iter().filter(|name| !LATER.contains(&name.as_str()));
            let names: Vec<String> = names.cloned().collect();
            syscall.set_names(names);
        }
        profile.set_syscalls(Some(syscalls));
        compare_on(platform, &profile, &VALUES[..6]);
    }
}

#[test]
fn what_the_kernel_does_not_know_is_answered_so_on_s390_too() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_KILL",
        "syscalls": [{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]
    });
    let profile = with_architectures(profile, &[Arch::ScmpArchS390x]);
    let s390 =
        PLATFORMS.iter().find(|one| one.abis[0].architecture == Arch::ScmpArchS390x).unwrap();
    let program = compile_for(&profile, s390).unwrap();
    let verdict = |number| {
        let architecture = Arch::ScmpArchS390x as u32;
        interpret(&program.instructions, &super::Call { architecture, number, arguments: [0; 6] })
    };
    assert_eq!(
        [verdict(0), verdict(1), verdict(3), verdict(500)],
        [ENOSYS, 0, 0x7fff_0000, ENOSYS]
    );
}

#[test]
fn architectures_of_other_kernels_are_named_where_there_is_no_other_and_change_nothing_beside_one()
{
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]
    });
    let own = with_architectures(profile.clone(), &[Arch::ScmpArchX86_64]);
    for platform in PLATFORMS.iter().filter(|one| one.abis[0].architecture != Arch::ScmpArchX86_64)
    {
        let foreign: Vec<Arch> = platform.abis.iter().map(|abi| abi.architecture).collect();
        let alone = with_architectures(profile.clone(), &foreign);
        let error = compile(&alone).unwrap_err();
        assert_eq!(error, Error::Architectures(foreign.clone()));
        let message = error.to_string();
        assert!(foreign.iter().all(|one| message.contains(&one.to_string())), "{message}");
        let beside: Vec<Arch> = foreign.into_iter().chain([Arch::ScmpArchX86_64]).collect();
        let beside = with_architectures(profile.clone(), &beside);
        assert_eq!(compile(&beside), compile(&own));
    }
}
