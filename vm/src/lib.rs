//! Boots a real Linux VM under QEMU and runs commands and test binaries in it as root.
//!
//! Owns: the kernels and the root image (fetched from Debian, cached under `.cache/vm`), the
//! QEMU process, and the conversation with `vm-init`, the program that is PID 1 or a service in
//! the guest. Does not own: what the tests do in there, or which tests are run.
//!
//! ```text
//! vm (host)                                  guest
//!  ├ kernel + initramfs ────────────────────► vm-init as PID 1: modules, mounts, cgroup v2
//!  ├ /dev/vda root image (never written)        ├ light:   stays PID 1 and serves
//!  ├ /dev/vdb modules of that kernel            └ systemd: execs it; a unit serves
//!  ├ /dev/vdc the files to have in the guest
//!  ├ /dev/vdd… further disks
//!  └ one virtio-serial port ◄── wire frames ──► start a job, its output, its exit status
//! ```

pub mod accel;
mod clock;
mod cpio;
mod images;
pub mod kernel;
pub mod machine;
mod qemu;
mod qmp;
mod run_dir;
pub mod store;
#[allow(unsafe_code)]
mod sys;
pub mod wire;
mod writer;

pub use images::Copy;
pub use kernel::Kernel;
pub use machine::{Config, Output, TimedOut, Vm};
pub use qemu::{Forward, Variant};
pub use store::Store;
pub use wire::{Job, Stdin};
pub use writer::Input;
