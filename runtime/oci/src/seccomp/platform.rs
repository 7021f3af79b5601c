//! The kinds of kernels that filters are compiled for: which ABIs each has, and how it lays out arguments.
//! Pure facts; what a filter says is [`super::rules`]', what calls are numbered [`super::table`]'s.
//! seccomp(2), `linux/audit.h`.

use oci_spec::runtime::Arch;

use super::table::{self, Numbers, Table};

/// The bit that marks an x32 system call number.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// How the six arguments of 64 bits stand in `struct seccomp_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

/// How much of an argument an ABI knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// The lower half: the upper one is not looked at, as libseccomp has it.
    Narrow,
    Wide,
}

/// Where the halves of an argument are from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Halves {
    pub(super) low: u32,
    /// Absent where the ABI has none.
    pub(super) high: Option<u32>,
}

/// A system call ABI that a filter tells apart.
#[derive(Debug)]
pub struct Abi {
    /// What a profile calls it.
    pub architecture: Arch,
    /// What the kernel calls it: `AUDIT_ARCH_*`. That of x32 is x86_64's.
    pub(super) audit: u32,
    /// Added to each number of the table.
    pub(super) base: u32,
    width: Width,
    /// Of the table.
    column: usize,
}

impl Abi {
    /// The number under which a filter sees all calls that the kernel does not know, where there is one:
    /// that of setup(2), which nobody makes.
    pub(super) fn number_of_unknown(&self) -> Option<u32> {
        matches!(self.architecture, Arch::ScmpArchS390 | Arch::ScmpArchS390x).then_some(0)
    }
}

/// A kind of kernel.
#[derive(Debug)]
pub struct Platform {
    /// The native ABI first.
    pub abis: &'static [Abi],
    order: ByteOrder,
    numbers: &'static Table,
}

impl Numbers {
    /// The number in `abi`, without its base.
    pub(super) fn get(self, abi: &Abi) -> Option<u32> {
        self.0[abi.column]
    }
}

impl Platform {
    /// The numbers of a name that any of the ABIs has.
    pub(super) fn find(&self, name: &str) -> Option<Numbers> {
        self.numbers.find(name)
    }

    pub(super) fn native(&self) -> &'static Abi {
        &self.abis[0]
    }

    pub(super) fn halves(&self, abi: &Abi) -> Halves {
        let (low, high) = match self.order {
            ByteOrder::Little => (0, 4),
            ByteOrder::Big => (4, 0),
        };
        Halves { low, high: (abi.width == Width::Wide).then_some(high) }
    }
}

const fn wide(architecture: Arch, column: usize) -> Abi {
    Abi { architecture, audit: architecture as u32, base: 0, width: Width::Wide, column }
}

const fn narrow(architecture: Arch, column: usize) -> Abi {
    Abi { width: Width::Narrow, ..wide(architecture, column) }
}

const fn little(abis: &'static [Abi], numbers: &'static Table) -> Platform {
    Platform { abis, order: ByteOrder::Little, numbers }
}

const fn big(abis: &'static [Abi], numbers: &'static Table) -> Platform {
    Platform { abis, order: ByteOrder::Big, numbers }
}

/// The kernels that filters can be compiled for.
pub static ALL: [&Platform; 15] = [
    &X86_64, &AARCH64, &ARM, &MIPS64, &MIPSEL64, &MIPS, &MIPSEL, &PARISC64, &PARISC, &PPC64,
    &PPC64LE, &PPC, &RISCV64, &S390X, &S390,
];

static X86_64: Platform = little(
    &[
        wide(Arch::ScmpArchX86_64, 0),
        narrow(Arch::ScmpArchX86, 1),
        Abi { audit: Arch::ScmpArchX86_64 as u32, base: X32_BIT, ..narrow(Arch::ScmpArchX32, 2) },
    ],
    &table::X86,
);
static AARCH64: Platform =
    little(&[wide(Arch::ScmpArchAarch64, 0), narrow(Arch::ScmpArchArm, 1)], &table::ARM);
static ARM: Platform = little(&[narrow(Arch::ScmpArchArm, 1)], &table::ARM);
static MIPS64: Platform = big(
    &[
        wide(Arch::ScmpArchMips64, 0),
        narrow(Arch::ScmpArchMips64n32, 1),
        narrow(Arch::ScmpArchMips, 2),
    ],
    &table::MIPS,
);
static MIPSEL64: Platform = little(
    &[
        wide(Arch::ScmpArchMipsel64, 0),
        narrow(Arch::ScmpArchMipsel64n32, 1),
        narrow(Arch::ScmpArchMipsel, 2),
    ],
    &table::MIPS,
);
static MIPS: Platform = big(&[narrow(Arch::ScmpArchMips, 2)], &table::MIPS);
static MIPSEL: Platform = little(&[narrow(Arch::ScmpArchMipsel, 2)], &table::MIPS);
static PARISC64: Platform =
    big(&[wide(Arch::ScmpArchParisc64, 0), narrow(Arch::ScmpArchParisc, 1)], &table::PARISC);
static PARISC: Platform = big(&[narrow(Arch::ScmpArchParisc, 1)], &table::PARISC);
static PPC64: Platform =
    big(&[wide(Arch::ScmpArchPpc64, 0), narrow(Arch::ScmpArchPpc, 1)], &table::POWER);
static PPC64LE: Platform = little(&[wide(Arch::ScmpArchPpc64le, 0)], &table::POWER);
static PPC: Platform = big(&[narrow(Arch::ScmpArchPpc, 1)], &table::POWER);
static RISCV64: Platform = little(&[wide(Arch::ScmpArchRiscv64, 0)], &table::RISCV);
static S390X: Platform =
    big(&[wide(Arch::ScmpArchS390x, 0), narrow(Arch::ScmpArchS390, 1)], &table::S390);
static S390: Platform = big(&[narrow(Arch::ScmpArchS390, 1)], &table::S390);

#[cfg(target_arch = "aarch64")]
use self::AARCH64 as HOST;
#[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
use self::PPC64LE as HOST;
#[cfg(target_arch = "riscv64")]
use self::RISCV64 as HOST;
#[cfg(target_arch = "s390x")]
use self::S390X as HOST;
#[cfg(target_arch = "x86_64")]
use self::X86_64 as HOST;

/// The kernel that this program is for. Building it for another kind than these five fails here.
pub(super) fn host() -> &'static Platform {
    &HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(abi: &Abi, platform: &Platform, name: &str) -> Option<u32> {
        platform.find(name).and_then(|numbers| numbers.get(abi))
    }

    #[test]
    fn numbers_agree_with_the_c_library() {
        let native = |name: &str| number(host().native(), host(), name).map(i64::from);
        assert_eq!(native("clone3"), Some(libc::SYS_clone3));
        assert_eq!(native("openat2"), Some(libc::SYS_openat2));
        assert_eq!(native("futex_waitv"), Some(libc::SYS_futex_waitv));
        assert_eq!(native("socketcall"), None);
    }

    #[test]
    fn every_abi_of_every_kernel_has_calls_of_its_own_numbers() {
        for platform in ALL {
            for abi in platform.abis {
                for name in ["read", "openat2", "sendmsg", "clone3", "close"] {
                    let found = number(abi, platform, name);
                    assert!(found.is_some(), "{:?}: {name}", abi.architecture);
                }
            }
        }
        assert_eq!(number(&X86_64.abis[1], &X86_64, "socketcall"), Some(102));
        assert_eq!(number(&X86_64.abis[2], &X86_64, "ioctl"), Some(514));
        assert_eq!(number(&MIPS64.abis[2], &MIPS64, "read"), Some(4_003));
    }
}
