//! End-to-end tests: the built `berth` on a real kernel, driven by an unmodified kubectl.
//!
//! Every test has a node of its own, in a network namespace of its own, and ends with an empty leak
//! census. The same executable runs on the host and in the VM; what `clocks`, `limits`, `nfs`, `service`,
//! `shutdown`, `slices`, `conformance::apparmor` and `conformance::selinux` assert, only the VM can show.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod checkpoints;
mod cli;
mod clocks;
mod conformance;
mod cri;
mod disks;
mod eviction;
mod faults;
mod identity;
mod image;
mod image_volumes;
mod images;
mod joining;
mod kills;
mod kubelet;
mod lifecycle;
mod limits;
mod nfs;
mod node;
mod nodes;
mod notify;
mod pod_resources;
mod pods;
mod readme;
mod refusals;
mod restart;
mod runtime_classes;
mod service;
mod services;
mod shutdown;
mod slices;
mod streams;
mod users;
mod volumes;
