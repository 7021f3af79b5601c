//! From numbered rules to a program: ranges of equal verdicts, found by a balanced binary search.
//!
//! A container's every system call runs this program, so its depth matters more than its length:
//! about nine comparisons, where a linear filter has hundreds.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use super::Error;
pub use super::assembler::Instruction;
use super::assembler::{Backwards, answer, check, load_architecture, load_number};
use super::platform::{self, Halves, Platform, X32_BIT};
use super::rules::{self, AbiRules, Rule, Rules, UNKNOWN, Verdict};

/// What tracers make of a call that is not to be made: -1, which has the bit of x32 and is none of it.
const NO_CALL: u32 = u32::MAX;
const MAX_INSTRUCTIONS: usize = 4096;

const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_NEW_LISTENER: u32 = 1 << 3;
const FLAG_WAIT_KILLABLE: u32 = 1 << 5;

/// A filter ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The instructions, at most 4096.
    pub instructions: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// Who decides what the filter leaves open.
    pub listener: Option<Listener>,
}

/// Where the descriptor of notifications goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// A socket of the host.
    pub path: PathBuf,
    /// Told to the listener as it is.
    pub metadata: String,
    /// When the filter of a container's first process is loaded.
    pub moment: Moment,
}

/// When a filter with a listener is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// With the container's creation, which is when runc's listeners are told.
    Creation,
    /// Not before the start: a wait for it would be held up, or denied, by the filter itself.
    Start,
}

/// What a process calls that waits for its start, and is then let go.
const WHILE_WAITING: [&str; 6] =
    ["ppoll", "read", "accept4", "close", "rt_sigaction", "rt_sigprocmask"];

/// Compiles a profile for the kernel that this program is for.
///
/// # Errors
/// When the profile asks for what berth does not offer; nothing is left out silently but names that
/// an ABI lacks.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, Error> {
    compile_for(profile, platform::host())
}

/// Compiles a profile for a kind of kernel.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_for(profile: &LinuxSeccomp, platform: &'static Platform) -> Result<Program, Error> {
    let rules = rules::number(profile, platform)?;
    let listener = match rules.notifies() {
        true => Some(listener(profile, &rules)?),
        false => None,
    };
    let instructions = program(&rules);
    if instructions.len() > MAX_INSTRUCTIONS {
        return Err(Error::TooLong(instructions.len()));
    }
    let mut flags = flags(profile);
    match listener {
        Some(_) => flags |= FLAG_NEW_LISTENER,
        // Nobody waits for a listener then, and the kernel takes the flag only with one.
        None => flags &= !FLAG_WAIT_KILLABLE,
    }
    Ok(Program { instructions, flags, listener })
}

fn listener(profile: &LinuxSeccomp, rules: &Rules) -> Result<Listener, Error> {
    let path = profile.listener_path().as_ref().filter(|path| path.is_absolute());
    let path = path.ok_or(Error::ListenerPath)?;
    if !rules.allows("sendmsg") {
        return Err(Error::HandOver);
    }
    let metadata = profile.listener_metadata().clone().unwrap_or_default();
    let waits = WHILE_WAITING.iter().all(|call| rules.allows(call));
    let moment = if waits { Moment::Creation } else { Moment::Start };
    Ok(Listener { path: path.clone(), metadata, moment })
}

fn flags(profile: &LinuxSeccomp) -> u32 {
    use LinuxSeccompFilterFlag as Flag;
    // Like runc: mitigations of speculation stay as the host has them unless flags are given.
    let Some(flags) = profile.flags() else {
        return FLAG_SPEC_ALLOW;
    };
    flags.iter().fold(0, |bits, flag| match flag {
        Flag::SeccompFilterFlagLog => bits | FLAG_LOG,
        Flag::SeccompFilterFlagSpecAllow => bits | FLAG_SPEC_ALLOW,
        // One thread loads it before the command runs, so there is nothing to synchronize.
        Flag::SeccompFilterFlagTsync => bits,
        Flag::SeccompFilterFlagWaitKillableRecv => bits | FLAG_WAIT_KILLABLE,
    })
}

fn program(rules: &Rules) -> Vec<Instruction> {
    let mut program = Backwards::default();
    // Each way of calling has a block of its own; what is left is of no ABI that the profile names.
    let mut blocks = Vec::with_capacity(rules.platform.abis.len());
    for abi in rules.platform.abis.iter().filter(|abi| abi.base == 0) {
        let Some(own) = rules.of(abi) else { continue };
        let has_marked = marked(&mut program, rules, abi.audit);
        let above = program.len();
        search(&mut program, &ranges(own, rules.default, rules.platform.halves(abi)), 0);
        if has_marked {
            program.split(X32_BIT, program.len() - above);
        }
        program.put(load_number());
        blocks.push((abi.audit, program.len()));
    }
    program.put(answer(Verdict::FOREIGN_ABI));
    for (audit, end) in blocks.into_iter().rev() {
        program.select(audit, program.len() - end);
    }
    program.put(load_architecture());
    program.finish()
}

/// Puts what is answered to numbers with the bit of x32, where the kernel has it.
fn marked(program: &mut Backwards, rules: &Rules, audit: u32) -> bool {
    let mut abis = rules.platform.abis.iter();
    let Some(abi) = abis.find(|abi| abi.audit == audit && abi.base != 0) else { return false };
    match rules.of(abi) {
        Some(own) => {
            let ranges = ranges(own, rules.default, rules.platform.halves(abi));
            search(program, &ranges, abi.base);
        }
        None => {
            program.put(answer(no_call(rules)));
            program.put(answer(Verdict::FOREIGN_ABI));
            program.split(NO_CALL, 1);
        }
    }
    true
}

/// The verdict for a native call that is none.
fn no_call(rules: &Rules) -> Verdict {
    let native = rules.of(rules.platform.native());
    match native.and_then(|native| native.unknown_from) {
        Some(_) => UNKNOWN,
        None => rules.default,
    }
}

/// Numbers from `start` up to the next range's start are decided alike.
struct Range {
    start: u32,
    block: Block,
}

/// What decides a call.
#[derive(PartialEq)]
enum Block {
    Answer(Verdict),
    /// Argument checks, closed.
    Checks(Vec<Instruction>),
}

impl Block {
    fn new(rule: &Rule, default: Verdict, halves: Halves) -> Self {
        match rule {
            Rule::Always(verdict) => Self::Answer(*verdict),
            Rule::Conditional(alternatives) => {
                let mut block: Vec<Instruction> = alternatives
                    .iter()
                    .flat_map(|(conditions, verdict)| check(conditions, halves, *verdict))
                    .collect();
                block.push(answer(default));
                Self::Checks(block)
            }
        }
    }
}

fn ranges(abi: &AbiRules, default: Verdict, halves: Halves) -> Vec<Range> {
    let mut list: Vec<Range> = Vec::new();
    let mut push = |start: u32, block: Block| match list.last_mut() {
        Some(last) if last.block == block => {}
        Some(last) if last.start == start => last.block = block,
        _ => list.push(Range { start, block }),
    };
    push(0, Block::Answer(default));
    for (number, rule) in &abi.rules {
        push(*number, Block::new(rule, default, halves));
        push(number + 1, Block::Answer(default));
    }
    if let Some(start) = abi.unknown_from {
        push(start, Block::Answer(UNKNOWN));
    }
    merge(list)
}

/// Joins neighbours that a replaced block made equal.
fn merge(list: Vec<Range>) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::with_capacity(list.len());
    for range in list {
        if merged.last().is_none_or(|last| last.block != range.block) {
            merged.push(range);
        }
    }
    merged
}

/// Puts the search for the range of a number.
fn search(program: &mut Backwards, ranges: &[Range], base: u32) {
    match ranges {
        [] => program.put(answer(Verdict::FOREIGN_ABI)),
        [Range { block: Block::Answer(verdict), .. }] => program.put(answer(*verdict)),
        [Range { block: Block::Checks(block), .. }] => program.put_all(block),
        _ => {
            let (below, above) = ranges.split_at(ranges.len() / 2);
            search(program, above, base);
            let end = program.len();
            search(program, below, base);
            program.split(base + above[0].start, program.len() - end);
        }
    }
}
