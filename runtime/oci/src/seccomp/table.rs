//! System call numbers by name, as they stand in text.
//!
//! Facts of the kernel's ABIs, in one file for all kernels of a family: a name, and for each ABI its number
//! or `-`. Those of MIPS include the base of their ABI, as the kernel reports them; those of x32 are
//! without its marker bit. The lines are in the order of their bytes, and searched as they stand: most
//! profiles are compiled once in a process.

/// Numbers of one name, by column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers(pub(super) [Option<u32>; 3]);

/// A file.
#[derive(Debug)]
pub(super) struct Table {
    text: &'static str,
    /// Where each line begins.
    starts: &'static [u16],
}

macro_rules! table {
    ($file:literal) => {
        Table {
            text: include_str!($file),
            starts: &starts::<{ count(include_str!($file)) }>(include_str!($file)),
        }
    };
}

pub(super) static X86: Table = table!("syscalls.tsv");
pub(super) static ARM: Table = table!("numbers/arm.tsv");
pub(super) static MIPS: Table = table!("numbers/mips.tsv");
pub(super) static PARISC: Table = table!("numbers/parisc.tsv");
pub(super) static POWER: Table = table!("numbers/powerpc.tsv");
pub(super) static RISCV: Table = table!("numbers/riscv.tsv");
pub(super) static S390: Table = table!("numbers/s390.tsv");

const fn count(text: &str) -> usize {
    let mut count = 0;
    let mut place = 0;
    while place < text.len() {
        count += (text.as_bytes()[place] == b'\n') as usize;
        place += 1;
    }
    count
}

const fn starts<const COUNT: usize>(text: &str) -> [u16; COUNT] {
    let mut starts = [0; COUNT];
    let mut line = 1;
    let mut place = 0;
    while line < starts.len() {
        if text.as_bytes()[place] == b'\n' {
            starts[line] = place as u16 + 1;
            line += 1;
        }
        place += 1;
    }
    starts
}

impl Table {
    /// The numbers of a name that any of the ABIs has.
    pub(super) fn find(&self, name: &str) -> Option<Numbers> {
        let text = self.text.as_bytes();
        // A tab is less than whatever is in a name: with it, lines are in the order of their names.
        let by_name = |start: &u16| {
            let line = &text[usize::from(*start)..];
            let (head, rest) = line.split_at(name.len().min(line.len()));
            head.cmp(name.as_bytes()).then_with(|| rest.first().cmp(&Some(&b'\t')))
        };
        let line = self.starts.binary_search_by(by_name).ok().filter(|_| !name.contains('\t'))?;
        let mut rest = text[usize::from(self.starts[line]) + name.len()..].iter();
        let mut numbers = [None; 3];
        let mut column = 0;
        rest.next();
        for byte in rest {
            match byte {
                b'\n' => break,
                b'\t' => column += 1,
                b'0'..=b'9' => {
                    let number = numbers.get_mut(column)?;
                    *number = Some(number.unwrap_or(0) * 10 + u32::from(byte - b'0'));
                }
                _ => {}
            }
        }
        Some(Numbers(numbers))
    }
}

/// A call through which others can be made as well: socketcall(2), ipc(2). Only some ABIs have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Multiplexer {
    Sockets,
    Ipc,
}

impl Multiplexer {
    pub(super) const ALL: [Self; 2] = [Self::Sockets, Self::Ipc];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sockets => "socketcall",
            Self::Ipc => "ipc",
        }
    }
}

/// The call through which another one can be made as well, and its first argument then.
pub(super) fn multiplexed(name: &str) -> Option<(Multiplexer, u64)> {
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
        return Some((Multiplexer::Sockets, place as u64 + 1));
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
    Some((Multiplexer::Ipc, call))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_found_by_its_name() {
        for table in [&X86, &ARM, &MIPS, &PARISC, &POWER, &RISCV, &S390] {
            assert!(table.text.len() < usize::from(u16::MAX) && table.text.ends_with('\n'));
            for line in table.text.lines() {
                let mut fields = line.split('\t');
                let numbers = table.find(fields.next().unwrap()).unwrap();
                for number in numbers.0 {
                    assert_eq!(
                        number,
                        fields.next().and_then(|field| field.parse().ok()),
                        "{line}"
                    );
                }
                assert_eq!(fields.next(), None, "{line}");
            }
            for name in ["", "a", "zz", "read\t0", "readx", "_"] {
                assert!(table.find(name).is_none(), "{name}");
            }
        }
    }
}
