//! Which devices a cgroup's processes may use: a list of rules as one eBPF program.
//!
//! cgroup v2 has no device files; a `BPF_PROG_TYPE_CGROUP_DEVICE` program decides each mknod and open.
//! Rules are tried from the last to the first, as later ones override earlier ones; each takes what it
//! speaks of from the access asked for, so that two rules can allow together what neither does alone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use rustix::io::Errno;

use crate::container::{Doing, Error, Result};
use crate::sys::{self, DeviceInstruction, DeviceProgram};

const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const ACCESS_ALL: i32 = ACCESS_MKNOD | ACCESS_READ | ACCESS_WRITE;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;

/// A rule of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// Character devices that every container may use whatever its rules say, as under runc: null, zero,
/// full, random, urandom, tty, console, ptmx, and the slaves of terminals.
const ALWAYS: [(i32, Option<i32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// The rules that follow those of the specification; nodes of any device may be made, but not opened.
fn defaults() -> impl Iterator<Item = Rule> {
    let allow =
        |kind, major, minor, access| Rule { allow: true, kind: Some(kind), major, minor, access };
    let nodes = [TYPE_BLOCK, TYPE_CHARACTER].map(|kind| allow(kind, None, None, ACCESS_MKNOD));
    let known = move |(major, minor)| allow(TYPE_CHARACTER, Some(major), minor, ACCESS_ALL);
    nodes.into_iter().chain(ALWAYS.into_iter().map(known))
}

/// Puts a cgroup under `list` and the customary devices, in place of what it was under; what neither
/// allows is denied. Returns a warning where the host offers no bpf(2).
pub(super) fn restrict(
    cgroup: BorrowedFd<'_>,
    list: &[LinuxDeviceCgroup],
) -> Result<Option<String>> {
    let program = match sys::load_device_program(&program(&rules(list)?)) {
        Ok(program) => program,
        Err(error) => {
            let absent = [Errno::PERM, Errno::NOSYS, Errno::ACCESS];
            return match Errno::from_io_error(&error) {
                Some(errno) if absent.contains(&errno) => Ok(Some(format!(
                    "bpf(2) is not available ({errno}), device rules are not enforced"
                ))),
                _ => Err(error).doing(|| "linux.resources.devices: load the device program"),
            };
        }
    };
    attach(cgroup, program.as_fd())
        .doing(|| "linux.resources.devices: attach the device program")
        .map(|()| None)
}

/// Attaches a program in one step with the end of the one before. Of several each has to allow an
/// access: the new one is in force before the old ones go.
fn attach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let old = sys::attached_device_programs(cgroup)?;
    if let [only] = old.as_slice() {
        return sys::attach_device_program(program, cgroup, Some(only.as_fd()));
    }
    sys::attach_device_program(program, cgroup, None)?;
    old.iter().try_for_each(|old| sys::detach_device_program(old.as_fd(), cgroup))
}

/// What a list says, and after it the customary devices.
fn rules(list: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let listed = list.iter().filter_map(|device| rule(device).transpose());
    listed.chain(defaults().map(Ok)).collect()
}

/// What an entry says: nothing where its letters name no access, as an `a` for all, under runc and crun too.
fn rule(device: &LinuxDeviceCgroup) -> Result<Option<Rule>> {
    let field = "linux.resources.devices";
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => i32::try_from(value)
            .map(Some)
            .map_err(|_| Error::invalid(field, format!("{value} is no device number"))),
    };
    let letters = device.access().as_deref().unwrap_or_default();
    let accesses = letters.chars().map(|letter| match letter {
        'r' => ACCESS_READ,
        'w' => ACCESS_WRITE,
        'm' => ACCESS_MKNOD,
        _ => 0,
    });
    let access = match letters {
        "" => ACCESS_ALL,
        _ => accesses.fold(0, |all, one| all | one),
    };
    let kind = match device.typ() {
        Some(LinuxDeviceType::B) => Some(TYPE_BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(TYPE_CHARACTER),
        Some(LinuxDeviceType::A) | None => None,
        Some(LinuxDeviceType::P) => return Err(Error::invalid(field, "type p is no device")),
    };
    let (major, minor) = (number(device.major())?, number(device.minor())?);
    let rule = Rule { allow: device.allow(), kind, major, minor, access };
    Ok((access != 0).then_some(rule))
}

// Registers: r1 context, then scratch; r2 type, r3 access not yet decided, r4 major, r5 minor, r0 result.
const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> DeviceInstruction {
    DeviceInstruction { code, registers, offset, immediate }
}

const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE_32: u8 = 0xbc;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const LOAD_WORD: u8 = 0x61;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// What a rule asks of the device, and the register that has it; the same question of consecutive rules
/// is asked once. Asked again it would be known to the kernel's verifier on each way to it, which then
/// follows all ways apart: ten times the time, in which a container waits.
type Question = (u8, fn(&Rule) -> Option<i32>);

const QUESTIONS: [Question; 3] =
    [(0x02, |rule| rule.kind), (0x04, |rule| rule.major), (0x05, |rule| rule.minor)];

/// Rules below one question, so that a jump over them is short enough.
const MAX_GROUP: usize = 2000;

/// Whether anything can come after a piece of code: what nothing leads to is refused by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    Ends,
}

fn program(rules: &[Rule]) -> DeviceProgram {
    let mut program = vec![
        // access_type: access in the upper half, type in the lower.
        instruction(LOAD_WORD, 0x12, 0, 0),
        instruction(MOVE_32, 0x23, 0, 0),
        instruction(AND_32, 0x02, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, 0x03, 0, 16),
        instruction(LOAD_WORD, 0x14, 4, 0),
        instruction(LOAD_WORD, 0x15, 8, 0),
    ];
    let rules: Vec<Rule> = rules.iter().rev().copied().collect();
    if ask(&rules, &QUESTIONS, &mut program) == Flow::On {
        program.extend(verdict(0));
    }
    program
}

/// Asks the questions of rules that are alike in those asked before.
fn ask(rules: &[Rule], questions: &[Question], code: &mut DeviceProgram) -> Flow {
    let Some(((register, of), further)) = questions.split_first() else {
        return decide(rules, code);
    };
    let alike = rules.chunk_by(|one, other| of(one) == of(other));
    for group in alike.flat_map(|group| group.chunks(MAX_GROUP)) {
        let Some(value) = of(&group[0]) else {
            if ask(group, further, code) == Flow::Ends {
                return Flow::Ends;
            }
            continue;
        };
        let jump = code.len();
        code.push(instruction(JUMP_NOT_EQUAL, *register, 0, value));
        ask(group, further, code);
        // A rule has at most a dozen instructions.
        code[jump].offset = (code.len() - jump - 1) as i16;
    }
    Flow::On
}

/// Rules of the same devices, one after the other.
fn decide(rules: &[Rule], code: &mut DeviceProgram) -> Flow {
    for rule in rules {
        let end = verdict(i32::from(rule.allow));
        let over = end.len() as i16;
        match rule.allow {
            _ if rule.access == ACCESS_ALL => {
                code.extend(end);
                return Flow::Ends;
            }
            // What is allowed need not be asked of earlier rules; with nothing left all is allowed.
            true => {
                code.push(instruction(AND_32, 0x03, 0, !rule.access & ACCESS_ALL));
                code.push(instruction(JUMP_NOT_EQUAL, 0x03, over, 0));
            }
            // Any of what is left being denied, all is.
            false => {
                code.push(instruction(MOVE_32, 0x31, 0, 0));
                code.push(instruction(AND_32, 0x01, 0, rule.access));
                code.push(instruction(JUMP_EQUAL, 0x01, over, 0));
            }
        }
        code.extend(end);
    }
    Flow::On
}

fn verdict(value: i32) -> [DeviceInstruction; 2] {
    [instruction(MOVE_IMMEDIATE, 0x00, 0, value), instruction(EXIT, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program for one access, as the kernel would.
    fn allows(rules: &[Rule], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        let program = program(rules);
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0i64; 16];
        let mut at = 0usize;
        loop {
            let i = program[at];
            at += 1;
            let to = usize::from(i.registers & 15);
            let from = registers[usize::from(i.registers >> 4)];
            match i.code {
                LOAD_WORD => registers[to] = i64::from(context[i.offset as usize / 4]),
                MOVE_32 => registers[to] = from,
                AND_32 => registers[to] &= i64::from(i.immediate),
                SHIFT_RIGHT_32 => registers[to] >>= i.immediate,
                MOVE_IMMEDIATE => registers[to] = i64::from(i.immediate),
                JUMP_NOT_EQUAL if registers[to] != i64::from(i.immediate) => {
                    at += i.offset as usize
                }
                JUMP_EQUAL if registers[to] == i64::from(i.immediate) => at += i.offset as usize,
                JUMP_NOT_EQUAL | JUMP_EQUAL => {}
                EXIT => return registers[0] != 0,
                other => panic!("{other:#x}"),
            }
        }
    }

    fn rules(json: &str) -> Vec<Rule> {
        super::rules(&serde_json::from_str::<Vec<_>>(json).unwrap()).unwrap()
    }

    #[test]
    fn without_rules_only_the_customary_devices_open() {
        let rules = rules("[]");
        assert!(allows(&rules, TYPE_CHARACTER, 1, 3, ACCESS_READ | ACCESS_WRITE));
        assert!(allows(&rules, TYPE_CHARACTER, 136, 7, ACCESS_WRITE));
        assert!(allows(&rules, TYPE_BLOCK, 8, 0, ACCESS_MKNOD));
        assert!(!allows(&rules, TYPE_BLOCK, 8, 0, ACCESS_READ));
        assert!(!allows(&rules, TYPE_BLOCK, 1, 3, ACCESS_READ));
        assert!(!allows(&rules, TYPE_CHARACTER, 1, 1, ACCESS_READ | ACCESS_MKNOD));
    }

    #[test]
    fn letters_that_name_no_access_say_nothing() {
        let rules = rules(
            r#"[{"allow":true,"type":"c","major":10,"minor":1,"access":"rwa"},
                {"allow":true,"type":"c","major":10,"minor":2,"access":"a"}]"#,
        );
        assert!(allows(&rules, TYPE_CHARACTER, 10, 1, ACCESS_READ | ACCESS_WRITE));
        assert!(!allows(&rules, TYPE_CHARACTER, 10, 2, ACCESS_READ));
    }

    #[test]
    fn later_rules_override_earlier_ones() {
        let rules = rules(
            r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","major":8,"access":"w"}]"#,
        );
        assert!(allows(&rules, TYPE_CHARACTER, 10, 200, ACCESS_WRITE));
        assert!(allows(&rules, TYPE_BLOCK, 8, 1, ACCESS_READ));
        assert!(!allows(&rules, TYPE_BLOCK, 8, 1, ACCESS_READ | ACCESS_WRITE));
        assert!(allows(&rules, TYPE_BLOCK, 9, 1, ACCESS_WRITE));
    }

    #[test]
    fn rules_allow_together_what_neither_allows_alone() {
        let rules = rules(
            r#"[{"allow":true,"type":"c","major":10,"minor":1,"access":"r"},
                {"allow":true,"type":"c","major":10,"minor":1,"access":"w"},
                {"allow":true,"type":"c","major":10,"access":"r"},
                {"allow":false,"type":"c","major":10,"minor":2,"access":"w"}]"#,
        );
        assert!(allows(&rules, TYPE_CHARACTER, 10, 1, ACCESS_READ | ACCESS_WRITE));
        assert!(allows(&rules, TYPE_CHARACTER, 10, 1, ACCESS_ALL));
        assert!(allows(&rules, TYPE_CHARACTER, 10, 2, ACCESS_READ | ACCESS_MKNOD));
        assert!(!allows(&rules, TYPE_CHARACTER, 10, 2, ACCESS_READ | ACCESS_WRITE));
        assert!(!allows(&rules, TYPE_CHARACTER, 10, 3, ACCESS_WRITE));
    }

    /// The rules as cgroup v1 had them: the last one that speaks of a kind of access decides it.
    fn oracle(rules: &[Rule], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        [ACCESS_MKNOD, ACCESS_READ, ACCESS_WRITE].into_iter().filter(|one| access & one != 0).all(
            |one| {
                let speaks = |rule: &&Rule| {
                    rule.access & one != 0
                        && rule.kind.is_none_or(|wanted| wanted == kind)
                        && rule.major.is_none_or(|wanted| wanted == major)
                        && rule.minor.is_none_or(|wanted| wanted == minor)
                };
                rules.iter().rev().find(speaks).is_some_and(|rule| rule.allow)
            },
        )
    }

    /// The kernel refuses a program with instructions that nothing leads to, or without an end.
    fn assert_reachable(program: &DeviceProgram) {
        let mut reached = vec![false; program.len()];
        let mut pending = vec![0];
        while let Some(at) = pending.pop() {
            if std::mem::replace(&mut reached[at], true) {
                continue;
            }
            let i = program[at];
            match i.code {
                EXIT => {}
                JUMP_NOT_EQUAL | JUMP_EQUAL => {
                    pending.extend([at + 1, at + 1 + i.offset as usize]);
                }
                _ => pending.push(at + 1),
            }
        }
        assert!(reached.iter().all(|one| *one), "{program:?}");
    }

    #[test]
    fn a_long_list_has_jumps_that_reach() {
        let many = (0..5000).map(|minor| Rule {
            allow: true,
            kind: Some(TYPE_BLOCK),
            major: Some(8),
            minor: Some(minor),
            access: ACCESS_READ,
        });
        let rules: Vec<Rule> = many.collect();
        assert_reachable(&program(&rules));
        assert!(allows(&rules, TYPE_BLOCK, 8, 0, ACCESS_READ));
        assert!(allows(&rules, TYPE_BLOCK, 8, 4999, ACCESS_READ));
        assert!(!allows(&rules, TYPE_BLOCK, 8, 5000, ACCESS_READ));
    }

    proptest::proptest! {
        #[test]
        fn the_program_decides_as_the_list_reads(
            list in proptest::collection::vec(
                (proptest::bool::ANY, 0..3i32, 0..3i64, 0..3i64, 1..8usize), 0..6),
            kind in 1..3i32, major in 1..3i32, minor in 1..4i32, access in 1..8i32,
            customary in proptest::bool::ANY,
        ) {
            let mut rules: Vec<Rule> = list
                .into_iter()
                .map(|(allow, kind, major, minor, access)| Rule {
                    allow,
                    kind: (kind != 0).then_some(kind),
                    major: (major != 0).then_some(major as i32),
                    minor: (minor != 0).then_some(minor as i32),
                    access: access as i32,
                })
                .collect();
            if customary {
                rules.extend(defaults());
            }
            assert_reachable(&program(&rules));
            let expected = oracle(&rules, kind, major, minor, access);
            proptest::prop_assert_eq!(allows(&rules, kind, major, minor, access), expected);
        }
    }
}
