//! From an OCI profile to numbered rules: pure, no instructions yet.
//!
//! Follows what runc makes of a profile through libseccomp: a rule without argument conditions wins
//! over those with; conditions that name one argument twice are alternatives; names an ABI lacks are
//! skipped; numbers above the highest one named answer ENOSYS when the default denies.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use super::Error;
use super::platform::{Abi, Platform};
use super::table::{Multiplexer, Numbers, multiplexed};

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0x0000_0000;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_USER_NOTIFY: u32 = 0x7fc0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_DATA: u32 = 0xffff;
/// What the kernel makes of larger ones as well.
const MAX_ERRNO: u32 = 4095;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// What a filter answers, as `SECCOMP_RET_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Verdict(pub(super) u32);

impl Verdict {
    /// The verdict for calls of an ABI that the profile does not name.
    pub(super) const FOREIGN_ABI: Self = Self(RET_KILL_THREAD);

    /// Whether the kernel carries the call out, and nobody is asked.
    pub(super) fn is_carried_out(self) -> bool {
        matches!(self.0, RET_ALLOW | RET_LOG)
    }

    fn new(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Self, Error> {
        use LinuxSeccompAction as A;
        let largest = match action {
            A::ScmpActErrno => MAX_ERRNO,
            A::ScmpActTrace => RET_DATA,
            _ if errno.is_some() => return Err(Error::ErrnoOf(action)),
            _ => 0,
        };
        let value = errno.unwrap_or(EPERM);
        if errno.is_some() && value > largest {
            return Err(Error::Errno(action, value, largest));
        }
        Ok(Self(match action {
            A::ScmpActKill | A::ScmpActKillThread => RET_KILL_THREAD,
            A::ScmpActKillProcess => RET_KILL_PROCESS,
            A::ScmpActTrap => RET_TRAP,
            A::ScmpActErrno => RET_ERRNO | value,
            A::ScmpActTrace => RET_TRACE | value,
            A::ScmpActLog => RET_LOG,
            A::ScmpActAllow => RET_ALLOW,
            A::ScmpActNotify => RET_USER_NOTIFY,
        }))
    }

    /// Whether a call that is newer than the profile is let through, to a tracer too.
    fn lets_pass(self) -> bool {
        matches!(self.0, RET_ALLOW | RET_LOG | RET_USER_NOTIFY) || self.0 & !RET_DATA == RET_TRACE
    }

    /// Whether it runs the call and tells nobody who could hold it up.
    fn allows(self) -> bool {
        matches!(self.0, RET_ALLOW | RET_LOG)
    }
}

/// One comparison of a system call's argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u8,
    pub(super) test: Test,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    Masked { mask: u64, value: u64 },
}

/// What happens to one system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// Always the same.
    Always(Verdict),
    /// The first alternative whose conditions all hold; else the default.
    Conditional(Vec<(Vec<Condition>, Verdict)>),
}

/// The rules of one ABI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AbiRules {
    /// In the order of their numbers.
    pub(super) rules: Vec<(u32, Rule)>,
    /// The first number that answers ENOSYS, where the default denies.
    pub(super) unknown_from: Option<u32>,
}

/// A whole profile, numbered.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) platform: &'static Platform,
    pub(super) default: Verdict,
    /// For each ABI of the platform; absent where the profile does not name it.
    pub(super) abis: Vec<Option<AbiRules>>,
}

impl AbiRules {
    /// Where a number is, or would be.
    fn place(&self, number: u32) -> Result<usize, usize> {
        self.rules.binary_search_by_key(&number, |(number, _)| *number)
    }

    fn get(&self, number: u32) -> Option<&Rule> {
        self.place(number).ok().map(|place| &self.rules[place].1)
    }
}

impl Rules {
    /// Whether any call is decided by a listener.
    pub(super) fn notifies(&self) -> bool {
        let notify = Verdict(RET_USER_NOTIFY);
        let of_rule = |rule: &Rule| match rule {
            Rule::Always(verdict) => *verdict == notify,
            Rule::Conditional(list) => list.iter().any(|(_, verdict)| *verdict == notify),
        };
        let of_abi = |abi: &AbiRules| abi.rules.iter().any(|(_, rule)| of_rule(rule));
        self.default == notify || self.abis.iter().flatten().any(of_abi)
    }

    /// Those of an ABI, where the profile names it.
    pub(super) fn of(&self, abi: &Abi) -> Option<&AbiRules> {
        let place = self.platform.abis.iter().position(|one| std::ptr::eq(one, abi))?;
        self.abis.get(place)?.as_ref()
    }

    /// Whether a native call always runs at once.
    pub(super) fn allows(&self, name: &str) -> bool {
        let native = self.platform.native();
        let Some(number) = self.platform.find(name).and_then(|numbers| numbers.get(native)) else {
            return false;
        };
        match self.of(native).and_then(|abi| abi.get(number)) {
            Some(Rule::Always(verdict)) => verdict.allows(),
            Some(Rule::Conditional(list)) => {
                self.default.allows() && list.iter().all(|(_, verdict)| verdict.allows())
            }
            None => self.default.allows(),
        }
    }
}

/// The verdict of numbers that are newer than the profile.
pub(super) const UNKNOWN: Verdict = Verdict(RET_ERRNO | ENOSYS);

/// One entry of a profile: what it decides, and for whom.
struct Entry {
    verdict: Verdict,
    alternatives: Vec<Vec<Condition>>,
    calls: Vec<Call>,
}

/// A call that an entry names.
struct Call {
    /// Absent where no ABI has it.
    numbers: Option<Numbers>,
    /// The call through which it can be made as well, and that one's first argument then.
    behind: Option<(Numbers, u64)>,
}

impl Entry {
    /// `through` are the calls through which others can be made, as [`Multiplexer::ALL`] names them.
    fn new(
        syscall: &LinuxSyscall,
        platform: &Platform,
        through: [Option<Numbers>; 2],
    ) -> Result<Self, Error> {
        let call = |name: &String| Call {
            numbers: platform.find(name),
            behind: multiplexed(name).and_then(|(by, call)| Some((through[by as usize]?, call))),
        };
        Ok(Self {
            verdict: Verdict::new(syscall.action(), syscall.errno_ret())?,
            alternatives: alternatives(syscall.args().as_deref().unwrap_or_default())?,
            calls: syscall.names().iter().map(call).collect(),
        })
    }
}

/// Numbers a profile.
pub(super) fn number(profile: &LinuxSeccomp, platform: &'static Platform) -> Result<Rules, Error> {
    let default = Verdict::new(profile.default_action(), profile.default_errno_ret())?;
    require_any(profile, platform)?;
    let through = Multiplexer::ALL.map(|one| platform.find(one.name()));
    let entries = profile.syscalls().iter().flatten();
    let entries = entries.map(|one| Entry::new(one, platform, through));
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let of_abi = |abi: &'static Abi| {
        if !is_named(profile, platform, abi) {
            return None;
        }
        let deciding = entries.iter().filter(|entry| entry.verdict != default);
        let mut rules = AbiRules { rules: rules(abi, deciding), unknown_from: None };
        if !default.lets_pass() && default != UNKNOWN {
            let named = entries.iter().flat_map(|entry| &entry.calls);
            answer_unknown(&mut rules, abi, named.filter_map(|one| one.numbers?.get(abi)).max());
        }
        Some(rules)
    };
    Ok(Rules { platform, default, abis: platform.abis.iter().map(of_abi).collect() })
}

/// Refuses a profile whose architectures are all of other kernels. Beside one of this kernel's they are
/// let be: it has no calls of theirs, and would they reach the filter, they would be killed.
fn require_any(profile: &LinuxSeccomp, platform: &Platform) -> Result<(), Error> {
    let named = profile.architectures().as_deref().unwrap_or_default();
    let is_known = |one: &Arch| {
        *one == Arch::ScmpArchNative || platform.abis.iter().any(|abi| abi.architecture == *one)
    };
    match named.is_empty() || named.iter().any(is_known) {
        true => Ok(()),
        false => Err(Error::Architectures(named.to_vec())),
    }
}

/// Whether a profile has rules for an ABI. As libseccomp starts every filter with the native one, they
/// are always for that.
fn is_named(profile: &LinuxSeccomp, platform: &Platform, abi: &Abi) -> bool {
    let mut named = profile.architectures().iter().flatten();
    std::ptr::eq(abi, platform.native()) || named.any(|one| *one == abi.architecture)
}

fn answer_unknown(rules: &mut AbiRules, abi: &Abi, highest: Option<u32>) {
    rules.unknown_from = highest.map(|number| number + 1);
    if let (Some(_), Some(number)) = (highest, abi.number_of_unknown()) {
        let rule = (number, Rule::Always(UNKNOWN));
        match rules.place(number) {
            Ok(place) => rules.rules[place] = rule,
            Err(place) => rules.rules.insert(place, rule),
        }
    }
}

/// What the entries say of each number of an ABI.
fn rules<'a>(abi: &Abi, entries: impl Iterator<Item = &'a Entry>) -> Vec<(u32, Rule)> {
    let mut said = Vec::new();
    for entry in entries {
        for call in &entry.calls {
            if let Some(number) = call.numbers.and_then(|numbers| numbers.get(abi)) {
                said.push((number, None, entry));
            }
            if let Some((through, call)) = call.behind
                && let Some(number) = through.get(abi)
            {
                said.push((number, Some(call), entry));
            }
        }
    }
    // Those of one number stay in the order of the profile.
    said.sort_by_key(|(number, ..)| *number);
    let same = said.chunk_by(|(one, ..), (other, ..)| one == other);
    same.map(|said| (said[0].0, rule(said))).collect()
}

/// What several entries make of one number.
fn rule(said: &[(u32, Option<u64>, &Entry)]) -> Rule {
    let mut list = Vec::new();
    for (_, through, entry) in said {
        let others = &entry.alternatives;
        let others = through.map_or_else(|| others.clone(), |call| behind(call, others));
        if others.is_empty() {
            return Rule::Always(entry.verdict);
        }
        list.extend(others.into_iter().map(|all| (all, entry.verdict)));
    }
    Rule::Conditional(list)
}

/// The conditions under which a call stands for another one, whose own first argument is behind a
/// pointer: as in libseccomp no condition on it is kept.
fn behind(call: u64, alternatives: &[Vec<Condition>]) -> Vec<Vec<Condition>> {
    let this = Condition { index: 0, test: Test::Equal(call) };
    let with_others = |all: &Vec<Condition>| {
        let others = all.iter().filter(|condition| condition.index != 0);
        std::iter::once(&this).chain(others).copied().collect()
    };
    match alternatives {
        [] => vec![vec![this]],
        list => list.iter().map(with_others).collect(),
    }
}

/// Each inner list is a conjunction; the outer one a disjunction; empty means no condition.
fn alternatives(arguments: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, Error> {
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let mut indices: Vec<u8> = conditions.iter().map(|condition| condition.index).collect();
    indices.sort_unstable();
    indices.dedup();
    if conditions.is_empty() {
        Ok(Vec::new())
    } else if indices.len() < conditions.len() {
        Ok(conditions.into_iter().map(|condition| vec![condition]).collect())
    } else {
        Ok(vec![conditions])
    }
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition, Error> {
    use LinuxSeccompOperator as Op;
    let index = argument.index();
    let value = argument.value();
    let narrow = u8::try_from(index).ok().filter(|index| *index < 6);
    Ok(Condition {
        index: narrow.ok_or(Error::ArgumentIndex(index))?,
        test: match argument.op() {
            Op::ScmpCmpNe => Test::NotEqual(value),
            Op::ScmpCmpLt => Test::Less(value),
            Op::ScmpCmpLe => Test::LessOrEqual(value),
            Op::ScmpCmpEq => Test::Equal(value),
            Op::ScmpCmpGe => Test::GreaterOrEqual(value),
            Op::ScmpCmpGt => Test::Greater(value),
            Op::ScmpCmpMaskedEq => {
                Test::Masked { mask: value, value: argument.value_two().unwrap_or(0) }
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_number_that_cannot_be_returned_is_refused() {
        use LinuxSeccompAction as A;
        let returned = |action, errno| Verdict::new(action, errno).map(|verdict| verdict.0);
        assert_eq!(returned(A::ScmpActErrno, None), Ok(RET_ERRNO | EPERM));
        assert_eq!(returned(A::ScmpActErrno, Some(MAX_ERRNO)), Ok(RET_ERRNO | MAX_ERRNO));
        assert_eq!(returned(A::ScmpActTrace, Some(RET_DATA)), Ok(RET_TRACE | RET_DATA));
        for (action, errno) in [
            (A::ScmpActErrno, MAX_ERRNO + 1),
            (A::ScmpActTrace, RET_DATA + 1),
            (A::ScmpActAllow, 0),
            (A::ScmpActKillProcess, 1),
        ] {
            let message = returned(action, Some(errno)).unwrap_err().to_string();
            assert!(message.starts_with("linux.seccomp: errnoRet"), "{message}");
        }
    }
}
