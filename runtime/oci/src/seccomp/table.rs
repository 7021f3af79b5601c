//! System call numbers of the three x86 ABIs, by name.
//!
//! Facts of the kernel's ABI in `syscalls.tsv`: name, x86_64, i386, x32 (without its marker bit); `-`
//! where an ABI lacks the call.

use std::collections::HashMap;

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

/// All names with their numbers.
pub(super) fn load() -> HashMap<&'static str, Numbers> {
    include_str!("syscalls.tsv")
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let name = fields.next()?;
            let mut number = || fields.next().and_then(|field| field.parse().ok());
            Some((name, Numbers([number(), number(), number()])))
        })
        .collect()
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
        let table = load();
        let native = |name: &str| table[name].get(Abi::X86_64).map(i64::from);
        assert_eq!(native("clone3"), Some(libc::SYS_clone3));
        assert_eq!(native("openat2"), Some(libc::SYS_openat2));
        assert_eq!(native("futex_waitv"), Some(libc::SYS_futex_waitv));
        assert_eq!(table["socketcall"].get(Abi::I386), Some(102));
        assert_eq!(table["socketcall"].get(Abi::X86_64), None);
        assert_eq!(table["ioctl"].get(Abi::X32), Some(514));
    }
}
