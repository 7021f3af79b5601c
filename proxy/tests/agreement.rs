//! The kernel agrees with the plan: after each of many random changes, a dump differs in nothing
//! from what the program says. Needs root.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use berth_proxy::dataplane::{Dataplane, Report};
use berth_proxy::model::{Absent, Backend, Facts, Place, Protocol, Vip, VipKey, VipKind};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn backends(v6: bool) -> impl Strategy<Value = Vec<Backend>> {
    let one = (0u8..30, prop::bool::ANY).prop_map(move |(last, here)| {
        let address: IpAddr =
            if v6 { format!("fd02::{last:x}").parse().unwrap() } else { [10, 244, 0, last].into() };
        let place = if here { Place::Here } else { Place::Elsewhere };
        Backend { address: SocketAddr::new(address, 8080), place }
    });
    prop::collection::vec(one, 0..24).prop_map(|mut list| {
        list.sort();
        list.dedup_by_key(|backend| backend.address);
        list
    })
}

fn change() -> impl Strategy<Value = (VipKey, Option<Vip>)> {
    (prop::bool::ANY, 0u8..4, prop::sample::select(&Protocol::ALL[..])).prop_flat_map(
        |(v6, last, protocol)| {
            let address: IpAddr = if v6 {
                format!("fd03::{last:x}").parse().unwrap()
            } else {
                [10, 96, 0, last].into()
            };
            let key = VipKey { address, protocol, port: 80 };
            let kind = prop_oneof![
                2 => Just(VipKind::ClusterIp),
                1 => Just(VipKind::External),
                1 => backends(v6).prop_map(VipKind::LocalExternal),
            ];
            let absent = prop_oneof![Just(Absent::Refuse), Just(Absent::Drop)];
            let hold = prop::option::weighted(0.3, prop::sample::select(&[60u32, 90][..]));
            let vip = (kind, backends(v6), absent, hold)
                .prop_map(|(kind, backends, absent, hold)| Vip { kind, backends, absent, hold });
            (Just(key), prop::option::weighted(0.8, vip))
        },
    )
}

#[test]
fn a_dump_after_any_change_differs_in_nothing() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests need root");
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(8) });
    let steps = prop::collection::vec(prop::collection::vec(change(), 1..6), 1..8);
    runner
        .run(&steps, |steps| {
            berth_proxy::dataplane::remove().unwrap();
            let facts = Facts::default();
            let mut dataplane = Dataplane::open(&facts).unwrap();
            dataplane.sync_full(Vec::new(), &facts).unwrap();
            let mut model: HashMap<VipKey, Vip> = HashMap::new();
            for step in steps {
                let step: HashMap<_, _> = step.into_iter().collect();
                for (key, vip) in &step {
                    match vip {
                        Some(vip) => drop(model.insert(*key, vip.clone())),
                        None => drop(model.remove(key)),
                    }
                }
                dataplane.sync(step.into_iter().collect()).unwrap();
                prop_assert!(!dataplane.disturbed());
                let wanted = model.iter().map(|(key, vip)| (*key, vip.clone())).collect();
                let report = Dataplane::open(&facts).unwrap().sync_full(wanted, &facts).unwrap();
                prop_assert_eq!(report, Report::default());
            }
            Ok(())
        })
        .unwrap();
}
