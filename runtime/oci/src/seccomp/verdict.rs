//! What a program answers to a call, found by running it as the kernel does: for those few calls that a
//! process has yet to make once it is under its filter.

use super::assembler::Operation;
use super::compile::Program;
use super::{platform, rules::Verdict};

/// A call of this kernel's own ABI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: libc::c_long,
    pub(crate) arguments: [u64; 6],
}

impl Program {
    /// Whether a call is carried out, and nobody is asked.
    pub(crate) fn lets(&self, call: &Call) -> bool {
        self.verdict(call).is_some_and(Verdict::is_carried_out)
    }

    /// None where the program is not one of this crate's.
    fn verdict(&self, call: &Call) -> Option<Verdict> {
        let data = data(call);
        let (mut at, mut value) = (0usize, 0u32);
        loop {
            let instruction = self.instructions.get(at)?;
            let jump = |holds| match holds {
                true => usize::from(instruction.jump_true),
                false => usize::from(instruction.jump_false),
            };
            let operand = instruction.operand;
            at += 1;
            match Operation::of(instruction.code)? {
                Operation::LoadWord => value = *data.get(operand as usize / 4)?,
                Operation::And => value &= operand,
                Operation::Return => return Some(Verdict(operand)),
                Operation::Jump => at += operand as usize,
                Operation::JumpEqual => at += jump(value == operand),
                Operation::JumpGreater => at += jump(value > operand),
                Operation::JumpGreaterOrEqual => at += jump(value >= operand),
            }
        }
    }
}

/// `struct seccomp_data` by its words; where the call is made from no filter of ours looks at.
fn data(call: &Call) -> [u32; 16] {
    let mut words = [0; 16];
    words[0] = call.number as u32;
    words[1] = platform::host().native().audit;
    for (index, argument) in call.arguments.iter().enumerate() {
        let halves = [*argument as u32, (*argument >> 32) as u32];
        let [low, high] = if cfg!(target_endian = "little") { [0, 1] } else { [1, 0] };
        words[4 + 2 * index + low] = halves[0];
        words[4 + 2 * index + high] = halves[1];
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::{compile, default_seccomp};
    use super::*;
    use serde_json::json;

    fn call(number: libc::c_long, first: u64) -> Call {
        Call { number, arguments: [first, 0, 0, 0, 0, 0] }
    }

    #[test]
    fn the_default_profile_lets_processes_be_cloned_and_no_namespaces_be_made() {
        let program = compile(&default_seccomp(&Default::default())).unwrap();
        assert!(program.lets(&call(libc::SYS_clone, 17)));
        assert!(!program.lets(&call(libc::SYS_clone, libc::CLONE_NEWNS as u64)));
        assert!(program.lets(&call(libc::SYS_setsid, 0)));
        assert!(!program.lets(&call(libc::SYS_init_module, 0)));
    }

    #[test]
    fn both_halves_of_an_argument_count_and_what_is_logged_or_asked_is_told_apart() {
        let rule = |action: &str, op: &str, value: u64| json!({"names": ["prctl"], "action": action, "args": [{"index": 0, "value": value, "op": op}]});
        let program = |rule: serde_json::Value, default: &str| {
            let profile = json!({"defaultAction": default, "syscalls": [rule],
                "listenerPath": "/run/listener"});
            compile(&serde_json::from_value(profile).unwrap()).unwrap()
        };
        let above = program(rule("SCMP_ACT_LOG", "SCMP_CMP_GT", 1 << 32), "SCMP_ACT_ERRNO");
        assert!(above.lets(&call(libc::SYS_prctl, (1 << 32) + 1)));
        assert!(!above.lets(&call(libc::SYS_prctl, 1 << 32)));
        assert!(!above.lets(&call(libc::SYS_prctl, 7)));
        let asked = program(rule("SCMP_ACT_NOTIFY", "SCMP_CMP_EQ", 1), "SCMP_ACT_ALLOW");
        assert!(!asked.lets(&call(libc::SYS_prctl, 1)));
        assert!(asked.lets(&call(libc::SYS_prctl, 2)));
    }
}
