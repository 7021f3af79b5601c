//! Cgroups through the command line: made, limited, frozen, watched, changed, removed.
//!
//! [`everywhere`] and [`users`] need no controllers. [`controllers`] does, [`units`] needs systemd as well, and
//! [`peers`] runc and crun beside, [`labels`] AppArmor, and [`selinux`] SELinux: these five run in the VM
//! and fail elsewhere.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

mod bundle;
mod controllers;
mod everywhere;
#[path = "../fixture/mod.rs"]
mod fixture;
mod labels;
mod peers;
mod selinux;
mod units;
mod users;
