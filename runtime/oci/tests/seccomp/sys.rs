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
    fn seccomp_syscall_resolve_name_arch(arch: u32, name: *const c_char) -> c_int;
    fn seccomp_rule_add_array(
        context: *mut c_void,
        action: u32,
        number: c_int,
        count: c_uint,
        comparisons: *const Comparison,
    ) -> c_int;
    fn seccomp_export_bpf(context: *mut c_void, fd: c_int) -> c_int;
}

pub(crate) struct Filter(*mut c_void);

impl Filter {
    pub(crate) fn new(default: u32, architectures: &[u32]) -> Self {
        // SAFETY: takes a plain number.
        let context = unsafe { seccomp_init(default) };
        assert!(!context.is_null());
        for architecture in architectures {
            // SAFETY: the context is valid; an architecture that is there already is refused.
            unsafe { seccomp_arch_add(context, *architecture) };
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

    pub(crate) fn export(self) -> Vec<Instruction> {
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
        bytes
            .chunks_exact(8)
            .map(|b| Instruction {
                code: u16::from_ne_bytes([b[0], b[1]]),
                jump_true: b[2],
                jump_false: b[3],
                operand: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            })
            .collect()
    }
}

pub(crate) fn number(architecture: u32, name: &str) -> i32 {
    let name = CString::new(name).unwrap();
    // SAFETY: the name is a C string.
    unsafe { seccomp_syscall_resolve_name_arch(architecture, name.as_ptr()) }
}
