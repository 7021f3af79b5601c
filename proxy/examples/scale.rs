//! Measures the proxy's rules: the time to program many Services, to change one endpoint, and
//! to adopt what is programmed. Works in a network namespace of its own; needs root.
//!
//! `cargo run --release -p berth-proxy --example scale [services…]`

#![allow(clippy::unwrap_used, missing_docs)]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use berth_proxy::dataplane::{Dataplane, Report};
use berth_proxy::model::{Absent, Backend, Facts, Place, Protocol, Vip, VipKey, VipKind};

/// Changes measured at each size.
const CHANGES: usize = 2000;

fn key(index: u32) -> VipKey {
    let address = Ipv4Addr::from(0x0a60_0000 + index).into();
    VipKey { address, protocol: Protocol::Tcp, port: 80 }
}

fn vip(index: u32, endpoints: u32) -> Vip {
    let backends = (0..endpoints).map(|n| Backend {
        address: SocketAddr::new(Ipv4Addr::from(0x0af4_0000 + index * 4 + n).into(), 8080),
        place: Place::Elsewhere,
    });
    Vip {
        kind: VipKind::ClusterIp,
        backends: backends.collect(),
        absent: Absent::Refuse,
        hold: None,
    }
}

fn all(services: u32) -> Vec<(VipKey, Vip)> {
    (1..=services).map(|index| (key(index), vip(index, 2))).collect()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn measure(services: u32) {
    let facts = Facts::default();
    berth_proxy::dataplane::remove().unwrap();
    let mut dataplane = Dataplane::open(&facts).unwrap();
    let started = Instant::now();
    dataplane.sync_full(all(services), &facts).unwrap();
    let load = started.elapsed();

    let mut times: Vec<Duration> = (0..CHANGES)
        .map(|round| {
            let index = 1 + (round as u32 / 2 * 37) % services;
            let change = vec![(key(index), Some(vip(index, 3 - round as u32 % 2)))];
            let started = Instant::now();
            dataplane.sync(change).unwrap();
            started.elapsed()
        })
        .collect();
    times.sort();

    drop(dataplane);
    let mut again = Dataplane::open(&facts).unwrap();
    let started = Instant::now();
    let report = again.sync_full(all(services), &facts).unwrap();
    let adopt = started.elapsed();
    assert_eq!(report, Report::default());
    println!(
        "{services:>6} services × 2: load {load:>10.1?}  change p50 {:>8.1?} p99 {:>8.1?}  \
         adopt {adopt:>10.1?}  peak {} KiB",
        times[CHANGES / 2],
        times[CHANGES * 99 / 100],
        resident_kib(),
    );
}

fn main() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
    let sizes: Vec<u32> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    for services in if sizes.is_empty() { vec![1000, 10_000] } else { sizes } {
        measure(services);
    }
}
