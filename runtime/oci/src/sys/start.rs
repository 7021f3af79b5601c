//! The first instructions of the executable: where a container is to be entered, it goes on from what
//! no container can write to (see `runc::sealed`) before its C library starts, which therefore starts
//! once and not twice: a sixth of what `exec` takes.
//!
//! Nothing is relocated yet where the executable relocates itself: here are only numbers, bytes and
//! system calls, no pointer in static memory and no function of a library.

use core::arch::{asm, naked_asm};
use core::ffi::CStr;
use core::mem::MaybeUninit;

/// Nobody mounts executables so; it tells our overlay from others.
const ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOSYMFOLLOW;
/// The same as statfs(2) tells it.
pub(crate) const OVERLAY_FLAGS: u64 = libc::ST_RDONLY | libc::ST_NOSUID | libc::ST_NODEV | 0x2000;
/// The seals of the copy in memory.
pub(crate) const SEALS: i32 =
    libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;

const FSOPEN_CLOEXEC: usize = 1;
const FSMOUNT_CLOEXEC: usize = 1;
const FSCONFIG_SET_STRING: usize = 1;
const FSCONFIG_CMD_CREATE: usize = 6;
/// The kernel's `struct statfs` is all 64-bit words on x86-64; the first is the file system's kind.
const STATFS_WORDS: usize = 15;
const STATFS_FLAGS: usize = 10;
const PATH_MAX: usize = libc::PATH_MAX as usize;

/// The commands that enter containers.
const ENTERING: [u64; 3] = [packed(b"run"), packed(b"exec"), packed(b"create")];

/// Where the kernel, or the dynamic loader, enters the executable; `build.rs` names it to the linker.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn berth_oci_start() -> ! {
    naked_asm!(
        // What the C library's own entry expects is kept in what a call preserves.
        "mov rbx, rsp",
        "mov r12, rdx",
        "mov rdi, rsp",
        "and rsp, -16",
        "call {first}",
        "mov rsp, rbx",
        "mov rdx, r12",
        "jmp _start",
        first = sym first,
    )
}

/// Keeps the entry point where a linker drops what nothing refers to.
#[used]
static ENTRY: extern "C" fn() -> ! = berth_oci_start;

/// Looks for a command that enters containers among the arguments. What it takes for one and is none
/// is executed again without need.
extern "C" fn first(stack: *const usize) {
    // SAFETY: the kernel's start of a stack: the count, so many arguments, a null, the environment.
    let count = unsafe { stack.read() };
    let arguments = stack.wrapping_add(1);
    for index in 0..count {
        // SAFETY: within the arguments, as counted.
        let argument = unsafe { arguments.wrapping_add(index).read() } as *const u8;
        let word = word(argument);
        if word == ENTERING[0] || word == ENTERING[1] || word == ENTERING[2] {
            let environment = arguments.wrapping_add(count + 1);
            return go_on(arguments as usize, environment as usize);
        }
    }
}

const fn packed(text: &[u8]) -> u64 {
    let mut word = 0;
    let mut index = 0;
    while index < text.len() {
        word = word << 8 | text[index] as u64;
        index += 1;
    }
    word
}

/// An argument of less than eight bytes as a number; zero for others.
fn word(argument: *const u8) -> u64 {
    let mut word = 0;
    for index in 0..8 {
        // SAFETY: a string that ends in NUL, not yet reached.
        let byte = unsafe { argument.wrapping_add(index).read() };
        if byte == 0 {
            return word;
        }
        word = word << 8 | u64::from(byte);
    }
    0
}

/// Executes the same file through an overlay. Returns where this is not needed, or cannot be had.
fn go_on(arguments: usize, environment: usize) {
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as usize;
    let Ok(own) = open(AT_CWD, c"/proc/self/exe".as_ptr() as usize, flags) else { return };
    if !is_out_of_reach(own)
        && let Ok(file) = below_overlay(own)
    {
        let empty = c"".as_ptr() as usize;
        let flags = libc::AT_EMPTY_PATH as usize;
        // It returns only where it fails.
        let _ = call(libc::SYS_execveat, [file, empty, arguments, environment, flags]);
        close(file);
    }
    close(own);
}

fn is_out_of_reach(own: usize) -> bool {
    let seals = call(libc::SYS_fcntl, [own, libc::F_GET_SEALS as usize, 0, 0, 0]);
    if seals.is_ok_and(|seals| seals as i32 & SEALS == SEALS) {
        return true;
    }
    let mut words = MaybeUninit::<[u64; STATFS_WORDS]>::uninit();
    if call(libc::SYS_fstatfs, [own, words.as_mut_ptr() as usize, 0, 0, 0]).is_err() {
        return false;
    }
    // SAFETY: the call wrote all of it, as it succeeded.
    let words = unsafe { words.assume_init_ref() };
    let (kind, flags) = (words[0], words[STATFS_FLAGS]);
    kind == libc::OVERLAYFS_SUPER_MAGIC as u64 && flags & OVERLAY_FLAGS == OVERLAY_FLAGS
}

/// This executable's file as an overlay without an upper layer shows it.
fn below_overlay(own: usize) -> Result<usize, ()> {
    let mut path = MaybeUninit::<[u8; PATH_MAX]>::uninit();
    let path = path.as_mut_ptr() as *mut u8;
    let link = c"/proc/self/exe".as_ptr() as usize;
    let length = call(libc::SYS_readlinkat, [AT_CWD, link, path as usize, PATH_MAX - 1, 0])?;
    // SAFETY: one byte more than was asked for.
    unsafe { path.wrapping_add(length).write(0) };
    let mut name = length;
    // SAFETY: within what was read.
    while name > 0 && unsafe { path.wrapping_add(name - 1).read() } != b'/' {
        name -= 1;
    }
    if name < 2 {
        return Err(());
    }
    // SAFETY: the slash before the name.
    unsafe { path.wrapping_add(name - 1).write(0) };
    let flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as usize;
    let directory = open(AT_CWD, path as usize, flags)?;
    let mount = overlay(directory);
    close(directory);
    let mount = mount?;
    let flags = (libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) as usize;
    let file = open(mount, path as usize + name, flags);
    close(mount);
    let file = file?;
    // Replaced meanwhile, or found by its path only where it was executed, it is another one.
    if is_same(own, file) {
        return Ok(file);
    }
    close(file);
    Err(())
}

/// A detached overlay of a directory.
fn overlay(directory: usize) -> Result<usize, ()> {
    let name = c"overlay".as_ptr() as usize;
    let context = call(libc::SYS_fsopen, [name, FSOPEN_CLOEXEC, 0, 0, 0])?;
    let mount = configured(context, directory).and_then(|()| {
        call(libc::SYS_fsmount, [context, FSMOUNT_CLOEXEC, ATTRIBUTES as usize, 0, 0])
    });
    close(context);
    mount
}

fn configured(context: usize, directory: usize) -> Result<(), ()> {
    // By its descriptor: no character of its path needs escaping, and it may be long. The second
    // layer has nothing to do with the file: without an upper one an overlay wants two lower ones.
    let mut layers = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let base = layers.as_mut_ptr();
    let mut place = b"/proc/self/fd/".len();
    let mut put = |byte: u8| {
        // SAFETY: ten digits and the five bytes after them are less than the zeros above.
        unsafe { base.wrapping_add(place).write_volatile(byte) };
        place += 1;
    };
    let mut divisor = 1_000_000_000;
    while divisor > 0 {
        let digit = directory / divisor;
        if digit > 0 || divisor == 1 {
            put(b'0' + (digit % 10) as u8);
        }
        divisor /= 10;
    }
    put(b':');
    put(b'/');
    put(b's');
    put(b'y');
    put(b's');
    set(context, c"lowerdir", base as usize)?;
    // On by default it is said in the kernel's log that it cannot be had.
    set(context, c"xino", c"off".as_ptr() as usize)?;
    call(libc::SYS_fsconfig, [context, FSCONFIG_CMD_CREATE, 0, 0, 0]).map(drop)
}

fn set(context: usize, key: &CStr, value: usize) -> Result<(), ()> {
    let arguments = [context, FSCONFIG_SET_STRING, key.as_ptr() as usize, value, 0];
    call(libc::SYS_fsconfig, arguments).map(drop)
}

fn is_same(one: usize, other: usize) -> bool {
    let (Ok(one), Ok(other)) = (status(one), status(other)) else { return false };
    one == other
}

/// Inode, size, and time of the last change of content.
fn status(file: usize) -> Result<(u64, i64, i64, i64), ()> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    call(libc::SYS_fstat, [file, status.as_mut_ptr() as usize, 0, 0, 0])?;
    // SAFETY: the call wrote all of it, as it succeeded.
    let status = unsafe { status.assume_init_ref() };
    Ok((status.st_ino, status.st_size, status.st_mtime, status.st_mtime_nsec))
}

const AT_CWD: usize = libc::AT_FDCWD as usize;

fn open(directory: usize, path: usize, flags: usize) -> Result<usize, ()> {
    call(libc::SYS_openat, [directory, path, flags, 0, 0])
}

fn close(descriptor: usize) {
    let _ = call(libc::SYS_close, [descriptor, 0, 0, 0, 0]);
}

#[inline(always)]
fn call(number: libc::c_long, arguments: [usize; 5]) -> Result<usize, ()> {
    let result: isize;
    // SAFETY: the callers give system calls what they take; the instruction changes rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if result < 0 { Err(()) } else { Ok(result as usize) }
}
