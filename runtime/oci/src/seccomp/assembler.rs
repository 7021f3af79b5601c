//! Classic BPF instructions over `struct seccomp_data`, and the argument checks built of them.
//!
//! Each block produced here is closed: every path through it ends in a return, or falls off its end
//! for the caller to continue. Jumps only go forward.

use super::platform::Halves;
use super::rules::{Condition, Test, Verdict};

const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;

/// What an instruction of ours does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    LoadWord,
    And,
    Return,
    Jump,
    JumpEqual,
    JumpGreater,
    JumpGreaterOrEqual,
}

impl Operation {
    /// None for codes that are not written here.
    pub(super) fn of(code: u16) -> Option<Self> {
        Some(match code {
            LOAD_WORD => Self::LoadWord,
            AND => Self::And,
            RETURN => Self::Return,
            JUMP => Self::Jump,
            JUMP_EQUAL => Self::JumpEqual,
            JUMP_GREATER => Self::JumpGreater,
            JUMP_GREATER_OR_EQUAL => Self::JumpGreaterOrEqual,
            _ => return None,
        })
    }
}

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// One instruction, laid out as the kernel's `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation code.
    pub code: u16,
    /// Instructions to skip when the comparison holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

/// Loads the system call number.
pub(super) fn load_number() -> Instruction {
    plain(LOAD_WORD, OFFSET_NUMBER)
}

/// Loads the audit architecture.
pub(super) fn load_architecture() -> Instruction {
    plain(LOAD_WORD, OFFSET_ARCHITECTURE)
}

/// Ends the program.
pub(super) fn answer(verdict: Verdict) -> Instruction {
    plain(RETURN, verdict.0)
}

/// A program from its end to its beginning: how far a jump leads is known then, and nothing is moved.
#[derive(Debug, Default)]
pub(super) struct Backwards(Vec<Instruction>);

impl Backwards {
    /// How many instructions there are so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts an instruction before all others.
    pub(super) fn put(&mut self, instruction: Instruction) {
        self.0.push(instruction);
    }

    /// The same with several, which keep their order.
    pub(super) fn put_all(&mut self, instructions: &[Instruction]) {
        self.0.extend(instructions.iter().rev());
    }

    /// `if A >= pivot { above } else { below }`: `below` is so long and comes first, `above` follows; both
    /// are closed.
    pub(super) fn split(&mut self, pivot: u32, below: usize) {
        self.branch(JUMP_GREATER_OR_EQUAL, pivot, below);
    }

    /// `if A == value { equal } else { other }`: `other` is so long and comes first, `equal` follows; both
    /// are closed.
    pub(super) fn select(&mut self, value: u32, other: usize) {
        self.branch(JUMP_EQUAL, value, other);
    }

    fn branch(&mut self, code: u16, operand: u32, otherwise: usize) {
        match u8::try_from(otherwise) {
            Ok(jump_true) => self.put(Instruction { code, jump_true, jump_false: 0, operand }),
            Err(_) => {
                // At most 4096 instructions survive the length check, so this never truncates there.
                self.put(plain(JUMP, u32::try_from(otherwise).unwrap_or(u32::MAX)));
                self.put(Instruction { code, jump_true: 0, jump_false: 1, operand });
            }
        }
    }

    /// The program.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        self.0.reverse();
        self.0
    }
}

/// Where a comparison of a conjunction goes.
#[derive(Clone, Copy)]
enum Target {
    /// The next instruction.
    Next,
    /// Past this condition: it holds.
    Holds,
    /// Past the conjunction: it fails.
    Fails,
}

enum Step {
    Plain(Instruction),
    Compare { code: u16, operand: u32, yes: Target, no: Target },
}

/// Checks a conjunction: returns `verdict` when all conditions hold, else falls off the end.
pub(super) fn check(
    conditions: &[Condition],
    halves: Halves,
    verdict: Verdict,
) -> Vec<Instruction> {
    let steps: Vec<Vec<Step>> = conditions.iter().map(|c| steps(*c, halves)).collect();
    let total = steps.iter().map(Vec::len).sum::<usize>() + 1;
    let mut block = Vec::with_capacity(total);
    let mut condition_end = 0;
    for condition in steps {
        condition_end += condition.len();
        for step in condition {
            let next = block.len() + 1;
            // A conjunction has at most six conditions of six steps: offsets fit.
            let offset = |target: Target| match target {
                Target::Next => 0,
                Target::Holds => (condition_end - next) as u8,
                Target::Fails => (total - next) as u8,
            };
            block.push(match step {
                Step::Plain(instruction) => instruction,
                Step::Compare { code, operand, yes, no } => {
                    Instruction { code, jump_true: offset(yes), jump_false: offset(no), operand }
                }
            });
        }
    }
    block.push(answer(verdict));
    block
}

fn steps(condition: Condition, halves: Halves) -> Vec<Step> {
    use Target::{Fails, Holds, Next};
    let base = OFFSET_ARGUMENTS + 8 * u32::from(condition.index);
    let low = || Step::Plain(plain(LOAD_WORD, base + halves.low));
    let high = halves.high.map(|high| plain(LOAD_WORD, base + high));
    let compare = |code, operand, yes, no| Step::Compare { code, operand, yes, no };
    let split = |value: u64| ((value >> 32) as u32, value as u32);
    let mut steps = Vec::with_capacity(6);
    // The upper halves decide unless they are equal; 32-bit ABIs have none.
    let mut decide = |value: u64, upper: &[(u16, Target, Target)], lower: (u16, Target, Target)| {
        let (value_high, value_low) = split(value);
        if let Some(high) = high {
            steps.push(Step::Plain(high));
            steps.extend(upper.iter().map(|(code, yes, no)| compare(*code, value_high, *yes, *no)));
        }
        steps.push(low());
        steps.push(compare(lower.0, value_low, lower.1, lower.2));
    };
    let greater = [(JUMP_GREATER, Holds, Next), (JUMP_EQUAL, Next, Fails)];
    let less = [(JUMP_GREATER, Fails, Next), (JUMP_EQUAL, Next, Holds)];
    match condition.test {
        Test::Equal(v) => decide(v, &[(JUMP_EQUAL, Next, Fails)], (JUMP_EQUAL, Next, Fails)),
        Test::NotEqual(v) => decide(v, &[(JUMP_EQUAL, Next, Holds)], (JUMP_EQUAL, Fails, Next)),
        Test::Greater(v) => decide(v, &greater, (JUMP_GREATER, Next, Fails)),
        Test::GreaterOrEqual(v) => decide(v, &greater, (JUMP_GREATER_OR_EQUAL, Next, Fails)),
        Test::Less(v) => decide(v, &less, (JUMP_GREATER_OR_EQUAL, Fails, Next)),
        Test::LessOrEqual(v) => decide(v, &less, (JUMP_GREATER, Fails, Next)),
        Test::Masked { mask, value } => {
            let (mask_high, mask_low) = split(mask);
            let (value_high, value_low) = split(value & mask);
            if let Some(high) = high {
                steps.extend([Step::Plain(high), Step::Plain(plain(AND, mask_high))]);
                steps.push(compare(JUMP_EQUAL, value_high, Next, Fails));
            }
            steps.extend([low(), Step::Plain(plain(AND, mask_low))]);
            steps.push(compare(JUMP_EQUAL, value_low, Next, Fails));
        }
    }
    steps
}
