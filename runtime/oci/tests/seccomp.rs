//! The compiled filters against libseccomp's: the same verdict for every system call number of every
//! ABI, found by interpreting both programs.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use berth_oci::default_seccomp;
use berth_oci::seccomp::{Instruction, compile};
use oci_spec::runtime::{Capability, LinuxSeccomp, LinuxSyscall};
use proptest::prelude::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;
const ENOSYS: u32 = 0x0005_0000 | 38;

/// libseccomp, as far as this test needs it.
#[allow(unsafe_code)]
mod sys {
    use std::ffi::{CString, c_char, c_int, c_uint, c_void};
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use berth_oci::seccomp::Instruction;

    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(super) struct Comparison {
        pub(super) argument: c_uint,
        pub(super) operator: c_uint,
        pub(super) first: u64,
        pub(super) second: u64,
    }

    #[link(name = "seccomp")]
    unsafe extern "C" {
        fn seccomp_init(action: u32) -> *mut c_void;
        fn seccomp_release(context: *mut c_void);
        fn seccomp_arch_add(context: *mut c_void, arch: u32) -> c_int;
        fn seccomp_syscall_resolve_name_arch(arch: u32, name: *const c_char) -> c_int;
        fn seccomp_rule_add_array(
            context: *mut c_void,
            action: u32,
            number: c_int,
            count: c_uint,
            comparisons: *const Comparison,
        ) -> c_int;
        fn seccomp_export_bpf(context: *mut c_void, fd: c_int) -> c_int;
    }

    pub(super) struct Filter(*mut c_void);

    impl Filter {
        pub(super) fn new(default: u32, architectures: &[u32]) -> Self {
            // SAFETY: takes a plain number.
            let context = unsafe { seccomp_init(default) };
            assert!(!context.is_null());
            for architecture in architectures {
                // SAFETY: the context is valid; an architecture that is there already is refused.
                unsafe { seccomp_arch_add(context, *architecture) };
            }
            Self(context)
        }

        pub(super) fn add(&self, action: u32, number: i32, comparisons: &[Comparison]) {
            // SAFETY: the context is valid and the array has the length given.
            let result = unsafe {
                let count = comparisons.len() as c_uint;
                seccomp_rule_add_array(self.0, action, number, count, comparisons.as_ptr())
            };
            assert!(result == 0 || result == -libc::EEXIST, "{number}: {result}");
        }

        pub(super) fn export(self) -> Vec<Instruction> {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let reading = std::thread::spawn(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                bytes
            });
            // SAFETY: context and descriptor are valid.
            assert_eq!(unsafe { seccomp_export_bpf(self.0, writer.as_raw_fd()) }, 0);
            drop(writer);
            // SAFETY: the context is valid and not used again.
            unsafe { seccomp_release(self.0) };
            let bytes = reading.join().unwrap();
            bytes
                .chunks_exact(8)
                .map(|b| Instruction {
                    code: u16::from_ne_bytes([b[0], b[1]]),
                    jump_true: b[2],
                    jump_false: b[3],
                    operand: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
                })
                .collect()
        }
    }

    pub(super) fn number(architecture: u32, name: &str) -> i32 {
        let name = CString::new(name).unwrap();
        // SAFETY: the name is a C string.
        unsafe { seccomp_syscall_resolve_name_arch(architecture, name.as_ptr()) }
    }
}

struct Call {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

fn interpret(program: &[Instruction], call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.architecture,
        8 | 12 => 0,
        _ => {
            let argument = call.arguments[(offset as usize - 16) / 8];
            (argument >> (offset % 8 * 8)) as u32
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

fn action(syscall: &LinuxSyscall) -> u32 {
    use oci_spec::runtime::LinuxSeccompAction as A;
    match syscall.action() {
        A::ScmpActAllow => 0x7fff_0000,
        A::ScmpActErrno => 0x0005_0000 | syscall.errno_ret().unwrap_or(1),
        A::ScmpActLog => 0x7ffc_0000,
        A::ScmpActTrap => 0x0003_0000,
        other => panic!("{other}"),
    }
}

/// What runc makes of a profile through libseccomp.
fn reference(profile: &LinuxSeccomp) -> Vec<Instruction> {
    let filter = sys::Filter::new(0x0005_0001, &[0x4000_003e, 0x4000_0003]);
    for syscall in profile.syscalls().iter().flatten() {
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
        for name in syscall.names() {
            filter.add(action(syscall), sys::number(X86_64, name), &comparisons);
        }
    }
    filter.export()
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

fn highest(profile: &LinuxSeccomp, architecture: u32) -> u32 {
    let names = profile.syscalls().iter().flatten().flat_map(|syscall| syscall.names());
    let numbers = names.map(|name| sys::number(architecture, name));
    numbers.filter(|n| *n >= 0).map(|n| n as u32 & !X32_BIT).max().unwrap()
}

fn compare(profile: &LinuxSeccomp, values: &[u64]) {
    let ours = compile(profile).unwrap();
    let theirs = reference(profile);
    for (architecture, table, base) in
        [(X86_64, X86_64, 0), (I386, I386, 0), (X86_64, 0x4000_003e, X32_BIT)]
    {
        let last = highest(profile, table);
        for number in 0..=last + 20 {
            for value in values {
                let arguments = [*value, value.rotate_left(7), *value, 0, *value ^ 1, 3];
                let call = Call { architecture, number: base + number, arguments };
                let verdict = interpret(&ours.instructions, &call);
                let expected = if number > last { ENOSYS } else { interpret(&theirs, &call) };
                assert_eq!(
                    verdict, expected,
                    "architecture {architecture:#x} number {:#x} argument {value:#x}",
                    call.number
                );
            }
        }
    }
    for architecture in [0xc000_00b7, 0x4000_0028, 0] {
        let call = Call { architecture, number: 0, arguments: [0; 6] };
        assert_eq!(interpret(&ours.instructions, &call), 0);
        assert_eq!(interpret(&theirs, &call), 0);
    }
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
    let table = include_str!("../src/seccomp/syscalls.tsv");
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

fn profile(rules: &[(String, String, u64, u64, u64)]) -> LinuxSeccomp {
    let syscalls: Vec<_> = rules
        .iter()
        .map(|(name, op, index, value, second)| {
            serde_json::json!({
                "names": [name], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": index, "value": value, "valueTwo": second, "op": op}]
            })
        })
        .collect();
    serde_json::from_value(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls
    }))
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn argument_conditions_give_libseccomp_s_verdicts(
        rules in proptest::collection::vec((
            prop_oneof![Just("read"), Just("prctl"), Just("kcmp"), Just("fcntl")],
            prop_oneof![Just("NE"), Just("LT"), Just("LE"), Just("EQ"), Just("GE"), Just("GT"), Just("MASKED_EQ")],
            0u64..3,
            proptest::sample::select(VALUES.as_slice()),
            proptest::sample::select(VALUES.as_slice()),
        ), 1..6)
    ) {
        // libseccomp compares 32-bit arguments by their lower half only where the value fits.
        let rules: Vec<_> = rules.into_iter()
            .map(|(name, op, index, value, second)| {
                (name.to_owned(), format!("SCMP_CMP_{op}"), index, value & 0xffff_ffff, second & value & 0xffff_ffff)
            })
            .collect();
        let mut seen = HashSet::new();
        let distinct: Vec<_> = rules.into_iter().filter(|r| seen.insert(r.0.clone())).collect();
        compare(&profile(&distinct), &VALUES);
    }
}
