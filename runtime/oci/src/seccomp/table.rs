//! System call numbers of the three x86 ABIs, by name.
//!
//! Facts of the kernel's ABI in `syscalls.tsv`: name, x86_64, i386, x32 (without its marker bit); `-`
//! where an ABI lacks the call. Its lines are in the order of their bytes, and searched as they stand:
//! most profiles are compiled once in a process.

/// The bit that marks an x32 system call number.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// A system call ABI that a filter tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Abi {
    /// Native 64-bit.
    X86_64,
    /// 32-bit compatibility.
    I386,
    /// 64-bit instructions with 32-bit pointers.
    X32,
}

impl Abi {
    /// Whether arguments are 32 bits wide, as libseccomp has it.
    pub(super) fn narrow(self) -> bool {
        self != Self::X86_64
    }

    fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::I386 => 1,
            Self::X32 => 2,
        }
    }
}

/// Numbers of one name, by [`Abi::column`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers([Option<u32>; 3]);

impl Numbers {
    /// The number in `abi`; for x32 without [`X32_BIT`].
    pub(super) fn get(self, abi: Abi) -> Option<u32> {
        self.0[abi.column()]
    }
}

const TABLE: &str = include_str!("syscalls.tsv");
/// Where each line begins.
static STARTS: [u16; count()] = starts();

const fn count() -> usize {
    let mut count = 0;
    let mut place = 0;
    while place < TABLE.len() {
        count += (TABLE.as_bytes()[place] == b'\n') as usize;
        place += 1;
    }
    count
}

const fn starts() -> [u16; count()] {
    let mut starts = [0; count()];
    let mut line = 1;
    let mut place = 0;
    while line < starts.len() {
        if TABLE.as_bytes()[place] == b'\n' {
            starts[line] = place as u16 + 1;
            line += 1;
        }
        place += 1;
    }
    starts
}

/// The fields of the line that begins at a place: a name and its numbers.
fn fields(start: u16) -> impl Iterator<Item = &'static str> {
    TABLE[usize::from(start)..].split(['\t', '\n'])
}

/// The numbers of a name that any of the ABIs has.
pub(super) fn find(name: &str) -> Option<Numbers> {
    let line = STARTS.binary_search_by(|start| fields(*start).next().cmp(&Some(name))).ok()?;
    let mut numbers = fields(STARTS[line]).skip(1).map(|field| field.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(Numbers([next(), next(), next()]))
}

/// The call of i386 through which another one can be made as well, and its first argument then:
/// socketcall(2), ipc(2).
pub(super) fn multiplexed(name: &str) -> Option<(u32, u64)> {
    const SOCKETCALL: u32 = 102;
    const IPC: u32 = 117;
    const SOCKET_CALLS: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    if let Some(place) = SOCKET_CALLS.iter().position(|one| *one == name) {
        return Some((SOCKETCALL, place as u64 + 1));
    }
    let call = match name {
        "semop" => 1,
        "semget" => 2,
        "semctl" => 3,
        "semtimedop" => 4,
        "msgsnd" => 11,
        "msgrcv" => 12,
        "msgget" => 13,
        "msgctl" => 14,
        "shmat" => 21,
        "shmdt" => 22,
        "shmget" => 23,
        "shmctl" => 24,
        _ => return None,
    };
    Some((IPC, call))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_the_c_library() {
        let number = |name: &str, abi| find(name).unwrap().get(abi);
        let native = |name: &str| number(name, Abi::X86_64).map(i64::from);
        assert_eq!(native("clone3"), Some(libc::SYS_clone3));
        assert_eq!(native("openat2"), Some(libc::SYS_openat2));
        assert_eq!(native("futex_waitv"), Some(libc::SYS_futex_waitv));
        assert_eq!(number("socketcall", Abi::I386), Some(102));
        assert_eq!(number("socketcall", Abi::X86_64), None);
        assert_eq!(number("ioctl", Abi::X32), Some(514));
    }
    #[test]
    fn every_line_is_found_by_its_name() {
        for line in TABLE.lines() {
            let mut fields = line.split('\t');
            let numbers = find(fields.next().unwrap()).unwrap();
            for abi in [Abi::X86_64, Abi::I386, Abi::X32] {
                assert_eq!(numbers.get(abi), fields.next().unwrap().parse().ok(), "{line}");
            }
        }
        for name in ["", "a", "zz", "read\t0", "readx", "_"] {
            assert!(find(name).is_none(), "{name}");
        }
    }
}
