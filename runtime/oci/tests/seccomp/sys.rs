//! libseccomp, as far as these tests need it.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::io::Read;
use std::os::fd::AsRawFd;

use berth_oci::seccomp::Instruction;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Comparison {
    pub(crate) argument: c_uint,
    pub(crate) operator: c_uint,
    pub(crate) first: u64,
    pub(crate) second: u64,
}

#[link(name = "seccomp")]
unsafe extern "C" {
    fn seccomp_init(action: u32) -> *mut c_void;
    fn seccomp_release(context: *mut c_void);
    fn seccomp_arch_add(context: *mut c_void, arch: u32) -> c_int;
    fn seccomp_arch_remove(context: *mut c_void, arch: u32) -> c_int;
    fn seccomp_syscall_resolve_name_arch(arch: u32, name: *const c_char) -> c_int;
    fn seccomp_syscall_resolve_num_arch(arch: u32, number: c_int) -> *mut c_char;
    fn seccomp_rule_add_array(
        context: *mut c_void,
        action: u32,
        number: c_int,
        count: c_uint,
        comparisons: *const Comparison,
    ) -> c_int;
    fn seccomp_export_bpf(context: *mut c_void, fd: c_int) -> c_int;
}

/// Of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum ByteOrder {
    Little,
    Big,
}

pub(crate) struct Filter(*mut c_void);

/// That of the machine: with it every filter begins.
const NATIVE: u32 = 0;

impl Filter {
    /// One for these architectures and no other.
    pub(crate) fn new(default: u32, architectures: &[u32]) -> Self {
        // SAFETY: takes a plain number.
        let context = unsafe { seccomp_init(default) };
        assert!(!context.is_null());
        // SAFETY: the context is valid.
        assert_eq!(unsafe { seccomp_arch_remove(context, NATIVE) }, 0);
        for architecture in architectures {
            // SAFETY: the context is valid; the architecture is a plain number.
            let result = unsafe { seccomp_arch_add(context, *architecture) };
            assert_eq!(result, 0, "{architecture:#x}");
        }
        Self(context)
    }

    /// A rule that is there already stays as it is.
    pub(crate) fn add(&self, action: u32, number: i32, comparisons: &[Comparison]) {
        // SAFETY: the context is valid and the array has the length given.
        let result = unsafe {
            let count = comparisons.len() as c_uint;
            seccomp_rule_add_array(self.0, action, number, count, comparisons.as_ptr())
        };
        assert!(result == 0 || result == -libc::EEXIST, "{number}: {result}");
    }

    /// The program, which is written in the byte order of the kernel that it is for.
    pub(crate) fn export(self, order: ByteOrder) -> Vec<Instruction> {
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
        let (code, operand) = match order {
            ByteOrder::Little => {
                (u16::from_le_bytes as fn(_) -> _, u32::from_le_bytes as fn(_) -> _)
            }
            ByteOrder::Big => (u16::from_be_bytes as fn(_) -> _, u32::from_be_bytes as fn(_) -> _),
        };
        let instruction = |b: &[u8]| {
            let (code, operand) = (code([b[0], b[1]]), operand([b[4], b[5], b[6], b[7]]));
            let operand = if code == RETURN { straight(operand) } else { operand };
            Instruction { code, jump_true: b[2], jump_false: b[3], operand }
        };
        bytes.chunks_exact(8).map(instruction).collect()
    }
}

const RETURN: u16 = 0x06;

/// What a program answers. Where libseccomp repeats an answer because a jump to it would be too long, it
/// turns its bytes round a second time, which shows when it compiles for a kernel of the other byte order.
fn straight(answer: u32) -> u32 {
    match (answer >> 16, answer & 0xffff) {
        (0x8000 | 0 | 3 | 0x7fc0 | 0x7ffc | 0x7fff, 0) | (5, ..4_096) | (0x7ff0, _) => answer,
        _ => answer.swap_bytes(),
    }
}

pub(crate) fn number(architecture: u32, name: &str) -> i32 {
    let name = CString::new(name).unwrap();
    // SAFETY: the name is a C string.
    unsafe { seccomp_syscall_resolve_name_arch(architecture, name.as_ptr()) }
}

/// What a number is called.
pub(crate) fn name(architecture: u32, number: i32) -> Option<String> {
    // SAFETY: takes plain numbers.
    let name = unsafe { seccomp_syscall_resolve_num_arch(architecture, number) };
    if name.is_null() {
        return None;
    }
    // SAFETY: what is returned is a C string that is the caller's.
    let text = unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned();
    // SAFETY: it was made by malloc(3), and nothing refers to it any more.
    unsafe { libc::free(name.cast()) };
    Some(text)
}
