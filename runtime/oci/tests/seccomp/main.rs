//! The compiled filters against libseccomp's: the same verdict for every system call number of every
//! ABI of every kind of kernel, found by interpreting both programs.

#![allow(clippy::unwrap_used)]

mod generated;
mod kernels;
#[allow(unsafe_code)]
mod sys;

use std::collections::HashSet;

use berth_oci::default_seccomp;
use berth_oci::seccomp::{Instruction, PLATFORMS, Platform, compile, compile_for};
use oci_spec::runtime::{Arch, Capability, LinuxSeccomp, LinuxSeccompAction};

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
/// libseccomp's name for it.
const X32: u32 = 0x4000_003e;
const X32_BIT: u32 = 0x4000_0000;
/// Well past the newest call.
const LAST_NUMBER: u32 = 600;
const ENOSYS: u32 = 0x0005_0000 | 38;

struct Call {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

/// `__AUDIT_ARCH_LE`.
const LITTLE_ENDIAN: u32 = 0x4000_0000;

/// Whether an ABI knows the lower halves of arguments alone: by `__AUDIT_ARCH_64BIT`, and by the mark of
/// MIPS' ABI of 32-bit pointers.
fn is_narrow(architecture: Arch) -> bool {
    let name = architecture as u32;
    name & 0x8000_0000 == 0 || name & 0x2000_0000 != 0
}

fn interpret(program: &[Instruction], call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.architecture,
        8 | 12 => 0,
        _ => {
            let argument = call.arguments[(offset as usize - 16) / 8];
            let upper = (offset % 8 == 4) == (call.architecture & LITTLE_ENDIAN != 0);
            (argument >> if upper { 32 } else { 0 }) as u32
        }
    };
    let (mut accumulator, mut at) = (0u32, 0usize);
    let mut steps = 0;
    loop {
        let i = program[at];
        at += 1;
        steps += 1;
        assert!(steps <= program.len(), "jumps only go forward");
        let mut jump =
            |holds: bool| at += usize::from(if holds { i.jump_true } else { i.jump_false });
        match i.code {
            0x20 => accumulator = word(i.operand),
            0x54 => accumulator &= i.operand,
            0x06 => return i.operand,
            0x05 => at += i.operand as usize,
            0x15 => jump(accumulator == i.operand),
            0x25 => jump(accumulator > i.operand),
            0x35 => jump(accumulator >= i.operand),
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn verdict(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    use LinuxSeccompAction as A;
    let errno = errno.unwrap_or(1) & 0xffff;
    match action {
        A::ScmpActKill | A::ScmpActKillThread => 0,
        A::ScmpActKillProcess => 0x8000_0000,
        A::ScmpActTrap => 0x0003_0000,
        A::ScmpActErrno => 0x0005_0000 | errno,
        A::ScmpActNotify => 0x7fc0_0000,
        A::ScmpActTrace => 0x7ff0_0000 | errno,
        A::ScmpActLog => 0x7ffc_0000,
        A::ScmpActAllow => 0x7fff_0000,
    }
}

fn default_verdict(profile: &LinuxSeccomp) -> u32 {
    verdict(profile.default_action(), profile.default_errno_ret())
}

/// Whether a profile has rules for an ABI; for the native one always.
fn names(profile: &LinuxSeccomp, platform: &Platform, architecture: Arch) -> bool {
    let mut named = profile.architectures().iter().flatten();
    platform.abis[0].architecture == architecture || named.any(|one| *one == architecture)
}

/// What runc makes of a profile through libseccomp on a kind of kernel.
fn reference(profile: &LinuxSeccomp, platform: &Platform) -> Vec<Instruction> {
    let abis = platform.abis.iter().map(|abi| abi.architecture);
    let architectures: Vec<u32> =
        abis.filter(|one| names(profile, platform, *one)).map(|one| one as u32).collect();
    let default = default_verdict(profile);
    let filter = sys::Filter::new(default, &architectures);
    for syscall in profile.syscalls().iter().flatten() {
        let verdict = verdict(syscall.action(), syscall.errno_ret());
        if verdict == default {
            continue;
        }
        let comparisons: Vec<sys::Comparison> = syscall
            .args()
            .iter()
            .flatten()
            .map(|argument| sys::Comparison {
                argument: argument.index() as u32,
                operator: argument.op() as u32,
                first: argument.value(),
                second: argument.value_two().unwrap_or(0),
            })
            .collect();
        let mut arguments: Vec<u32> = comparisons.iter().map(|one| one.argument).collect();
        arguments.sort_unstable();
        arguments.dedup();
        // Conditions that name an argument twice are alternatives, as runc has it.
        let rules: Vec<&[sys::Comparison]> = match arguments.len() < comparisons.len() {
            true => comparisons.chunks(1).collect(),
            false => vec![&comparisons],
        };
        for name in syscall.names() {
            for rule in &rules {
                filter.add(verdict, sys::number(X86_64, name), rule);
            }
        }
    }
    filter.export(match architectures[0] & LITTLE_ENDIAN {
        0 => sys::ByteOrder::Big,
        _ => sys::ByteOrder::Little,
    })
}

/// Without the calls that this libseccomp is too old to know.
fn known(mut profile: LinuxSeccomp) -> LinuxSeccomp {
    let mut syscalls = profile.syscalls().clone().unwrap();
    for syscall in &mut syscalls {
        let names = syscall.names().iter().filter(|name| sys::number(X86_64, name) != -1);
        let names: Vec<String> = names.cloned().collect();
        syscall.set_names(names);
    }
    syscalls.retain(|syscall| !syscall.names().is_empty());
    profile.set_syscalls(Some(syscalls));
    profile
}

/// The highest number of an ABI that a profile names, past which runc answers ENOSYS where the default
/// denies.
fn highest(profile: &LinuxSeccomp, architecture: u32) -> Option<u32> {
    let names = profile.syscalls().iter().flatten().flat_map(|syscall| syscall.names());
    let numbers = names.map(|name| sys::number(architecture, name));
    numbers.filter(|n| *n >= 0).map(|n| n as u32 & !X32_BIT).max()
}

/// The kernel that these tests run on.
fn host() -> &'static Platform {
    let native = |platform: &&Platform| platform.abis[0].architecture == Arch::ScmpArchX86_64;
    PLATFORMS.into_iter().find(native).unwrap()
}

fn compare(profile: &LinuxSeccomp, values: &[u64]) {
    compare_on(host(), profile, values);
    assert_eq!(compile(profile).unwrap(), compile_for(profile, host()).unwrap());
}

/// Where the numbers of an ABI begin, as the kernel reports them: x32's with a bit of their own, and
/// MIPS' each in a thousand of their own. All of them are tried on every ABI.
const BASES: [u32; 5] = [0, X32_BIT, 4_000, 5_000, 6_000];

/// Calls every number of every ABI, and some that no ABI has.
fn compare_on(platform: &'static Platform, profile: &LinuxSeccomp, values: &[u64]) {
    let ours = compile_for(profile, platform).unwrap();
    let theirs = reference(profile, platform);
    let default = default_verdict(profile);
    let denies =
        !matches!(default & 0xffff_0000, 0x7fff_0000 | 0x7ffc_0000 | 0x7fc0_0000 | 0x7ff0_0000);
    let is_named = |architecture| names(profile, platform, architecture);
    for abi in platform.abis {
        let table = abi.architecture as u32;
        let there = is_named(abi.architecture);
        let (architecture, marked) = match abi.architecture {
            Arch::ScmpArchX32 => (X86_64, true),
            _ => (table, false),
        };
        // Of all that this kernel does not know it says so by the number of setup(2).
        let is_s390 = matches!(abi.architecture, Arch::ScmpArchS390 | Arch::ScmpArchS390x);
        let last = highest(profile, table).filter(|_| denies && there);
        let bases = BASES.into_iter().filter(|base| (*base == X32_BIT) == marked);
        let numbers = bases.flat_map(|base| (0..=LAST_NUMBER).map(move |number| base + number));
        for number in numbers {
            let is_newer =
                last.is_some_and(|last| number & !X32_BIT > last || is_s390 && number == 0);
            for value in values {
                let arguments = [*value, value.rotate_left(7), *value, 0, *value ^ 1, 3];
                let call = Call { architecture, number, arguments };
                let verdict = interpret(&ours.instructions, &call);
                let expected = if is_newer { ENOSYS } else { interpret(&theirs, &call) };
                assert_eq!(
                    verdict, expected,
                    "{} number {number:#x} argument {value:#x} {profile:?}",
                    abi.architecture,
                );
            }
        }
    }
    let known = platform.abis.iter().map(|abi| abi.architecture as u32).collect::<HashSet<_>>();
    let all = PLATFORMS.iter().flat_map(|platform| platform.abis);
    let foreign = all.map(|abi| abi.architecture).filter(|one| *one != Arch::ScmpArchX32);
    for architecture in foreign.map(|one| one as u32).filter(|one| !known.contains(one)).chain([0])
    {
        let call = Call { architecture, number: 0, arguments: [0; 6] };
        assert_eq!(interpret(&ours.instructions, &call), 0);
        assert_eq!(interpret(&theirs, &call), 0);
    }
    // What a tracer makes of a call that is not to be made is no call of x32.
    let native = platform.abis[0].architecture;
    let none = Call { architecture: native as u32, number: u32::MAX, arguments: [0; 6] };
    let table = if is_named(Arch::ScmpArchX32) { Arch::ScmpArchX32 } else { native };
    let expected = match denies && highest(profile, table as u32).is_some() {
        true => ENOSYS,
        false => default,
    };
    assert_eq!(interpret(&ours.instructions, &none), expected);
    assert_eq!(interpret(&theirs, &none), default);
}

const VALUES: [u64; 18] = [
    0,
    1,
    8,
    39,
    40,
    41,
    0x2_0000,
    0x2_0008,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0028,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
    0x0002_0000,
    0x0200_0000,
    0x003d_0f00,
    u64::MAX,
];

#[test]
fn the_default_profile_gives_libseccomp_s_verdicts() {
    compare(&known(default_seccomp(&HashSet::new())), &VALUES);
    let some = [Capability::SysAdmin, Capability::SysPtrace, Capability::SysTime];
    compare(&known(default_seccomp(&some.into_iter().collect())), &VALUES);
}

#[test]
fn the_default_filter_is_short() {
    let program = compile(&default_seccomp(&HashSet::new())).unwrap();
    assert!(program.instructions.len() < 700, "{}", program.instructions.len());
}

#[test]
fn the_default_profile_names_only_calls_that_exist() {
    let table = include_str!("../../src/seccomp/syscalls.tsv");
    let table: HashSet<&str> = table.lines().filter_map(|line| line.split('\t').next()).collect();
    let all = [
        Capability::SysAdmin,
        Capability::SysBoot,
        Capability::SysChroot,
        Capability::SysModule,
        Capability::SysPacct,
        Capability::SysPtrace,
        Capability::SysRawio,
        Capability::SysTime,
        Capability::SysTtyConfig,
        Capability::SysNice,
        Capability::Syslog,
        Capability::Bpf,
        Capability::Perfmon,
        Capability::DacReadSearch,
    ];
    let profile = default_seccomp(&all.into_iter().collect());
    for name in profile.syscalls().iter().flatten().flat_map(|syscall| syscall.names()) {
        assert!(table.contains(name.as_str()), "{name}");
    }
}

#[test]
fn what_i386_makes_through_one_call_is_decided_as_the_call_that_it_is() {
    for action in ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"] {
        let default = if action == "SCMP_ACT_ALLOW" { "SCMP_ACT_KILL" } else { "SCMP_ACT_ALLOW" };
        let names = [
            "socket", "bind", "send", "recv", "accept", "accept4", "shutdown", "semop", "msgsnd",
            "shmctl", "openat2",
        ];
        let syscalls = names.map(|name| serde_json::json!({"names": [name], "action": action}));
        let profile = serde_json::from_value(serde_json::json!({
            "defaultAction": default, "architectures": ["SCMP_ARCH_X86"], "syscalls": syscalls
        }))
        .unwrap();
        let values: Vec<u64> = (0..=30).collect();
        compare(&profile, &values);
        let program = compile(&profile).unwrap();
        let call = |operation| Call {
            architecture: I386,
            number: 102,
            arguments: [operation, 0, 0, 0, 0, 0],
        };
        let verdicts = [1, 3].map(|operation| interpret(&program.instructions, &call(operation)));
        assert_ne!(verdicts[0], verdicts[1], "socket is named, connect is not");
    }
}
