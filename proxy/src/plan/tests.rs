//! Properties of the plan: what it yields, applied to what was, is what was wanted.

use proptest::prelude::*;

use super::*;
use crate::model::Protocol;

/// Applies changes the way the kernel does: set by set, deletions first; what is deleted must
/// exist, and what is added must not.
fn apply(mut state: Elements, changes: &[ElementChange]) -> Elements {
    let sets: BTreeSet<SetRef> = changes
        .iter()
        .map(|change| match change {
            ElementChange::Delete(set, _) | ElementChange::Add(set, _) => *set,
        })
        .collect();
    for wanted in sets {
        for change in changes {
            if let ElementChange::Delete(set, element) = change
                && *set == wanted
            {
                let gone = state.remove(&(*set, element.key.clone()));
                assert!(gone.is_some(), "deletes what is not there: {element:?}");
            }
        }
        for change in changes {
            if let ElementChange::Add(set, element) = change
                && *set == wanted
            {
                let old = state.insert((*set, element.key.clone()), element.value.clone());
                assert!(old.is_none(), "adds what is there: {element:?}");
            }
        }
    }
    state
}

fn backend() -> impl Strategy<Value = Backend> {
    (0u8..24, prop::bool::ANY).prop_map(|(last, here)| Backend {
        address: SocketAddr::new([10, 244, 0, last].into(), 8080),
        place: if here { Place::Here } else { Place::Elsewhere },
    })
}

fn backends() -> impl Strategy<Value = Vec<Backend>> {
    prop::collection::vec(backend(), 0..22).prop_map(|mut list| {
        list.sort();
        list.dedup_by_key(|backend| backend.address);
        list
    })
}

fn key() -> impl Strategy<Value = VipKey> {
    (0u8..3, prop::sample::select(&Protocol::ALL[..]), 80u16..82).prop_map(
        |(last, protocol, port)| VipKey { address: [10, 96, 0, last].into(), protocol, port },
    )
}

fn vip() -> impl Strategy<Value = Vip> {
    let kind = prop_oneof![
        Just(VipKind::ClusterIp),
        Just(VipKind::External),
        backends().prop_map(VipKind::LocalExternal),
    ];
    let absent = prop_oneof![Just(Absent::Refuse), Just(Absent::Drop)];
    let hold = prop::option::weighted(0.3, prop::sample::select(&[60u32, 90][..]));
    (kind, backends(), absent, hold).prop_map(|(kind, backends, absent, hold)| Vip {
        kind,
        backends,
        absent,
        hold,
    })
}

fn wanted() -> impl Strategy<Value = HashMap<VipKey, Option<Vip>>> {
    prop::collection::hash_map(key(), prop::option::weighted(0.8, vip()), 0..8)
}

/// The endpoints of a port, in no order.
fn unordered(vip: &Vip) -> (BTreeSet<Backend>, Option<BTreeSet<Backend>>, Absent) {
    let local = match &vip.kind {
        VipKind::LocalExternal(local) => Some(local.iter().copied().collect()),
        _ => None,
    };
    (vip.backends.iter().copied().collect(), local, vip.absent)
}

proptest! {
    #[test]
    fn each_plan_leads_from_the_elements_before_to_the_elements_after(
        steps in prop::collection::vec(wanted(), 1..6),
    ) {
        let mut program = Program::default();
        let mut kernel = Elements::new();
        let mut model: HashMap<VipKey, Vip> = HashMap::new();
        for step in steps {
            for (key, vip) in &step {
                match vip {
                    Some(vip) => drop(model.insert(*key, vip.clone())),
                    None => drop(model.remove(key)),
                }
            }
            let plan = program.plan(step.into_iter().collect()).unwrap();
            kernel = apply(kernel, &plan.changes);
            program.applied(plan);
            prop_assert_eq!(&kernel, &program.elements().unwrap());
            prop_assert_eq!(program.vips().count(), model.len());
            for (key, vip) in program.vips() {
                prop_assert_eq!(unordered(vip), unordered(&model[key]));
            }
        }
    }

    #[test]
    fn a_diff_leads_from_one_set_of_elements_to_the_other(a in wanted(), b in wanted()) {
        let elements = |wanted: HashMap<VipKey, Option<Vip>>| {
            let mut program = Program::default();
            let plan = program.plan(wanted.into_iter().collect()).unwrap();
            program.applied(plan);
            program.elements().unwrap()
        };
        let (a, b) = (elements(a), elements(b));
        prop_assert_eq!(apply(a.clone(), &diff(&a, &b)), b);
    }

    #[test]
    fn adopting_what_is_programmed_changes_nothing(
        steps in prop::collection::vec(wanted(), 1..4),
    ) {
        let mut program = Program::default();
        for step in steps {
            let plan = program.plan(step.into_iter().collect()).unwrap();
            program.applied(plan);
        }
        let observed = program.elements().unwrap();
        let mut wanted: Vec<_> = program.vips().map(|(key, vip)| (*key, vip.clone())).collect();
        for (_, vip) in &mut wanted {
            vip.backends.sort();
            if let VipKind::LocalExternal(local) = &mut vip.kind {
                local.sort();
            }
        }
        let adopted = adopt(&observed, wanted);
        prop_assert_eq!(diff(&observed, &adopted.elements().unwrap()), []);
    }

    #[test]
    fn endpoints_that_stay_keep_their_slots_unless_they_fill_a_hole(
        before in backends(),
        wanted in backends(),
    ) {
        let slots = arrange(&before, &wanted);
        let as_set = |list: &[Backend]| list.iter().copied().collect::<BTreeSet<_>>();
        prop_assert_eq!(as_set(&slots), as_set(&wanted));
        prop_assert_eq!(slots.len(), wanted.len());
        let moved = before.iter().enumerate().filter(|(slot, old)| {
            wanted.iter().any(|w| w.address == old.address)
                && slots.get(*slot).map(|new| new.address) != Some(old.address)
        });
        let shrunk = before.len().saturating_sub(wanted.len());
        prop_assert!(moved.count() <= shrunk);
    }
}

#[test]
fn one_endpoint_more_is_one_slot_and_one_move() {
    let key = VipKey { address: [10, 96, 0, 1].into(), protocol: Protocol::Tcp, port: 80 };
    let of = |count: u8| Vip {
        kind: VipKind::ClusterIp,
        backends: (0..count)
            .map(|last| Backend {
                address: SocketAddr::new([10, 244, 0, last].into(), 8080),
                place: Place::Elsewhere,
            })
            .collect(),
        absent: Absent::Refuse,
        hold: None,
    };
    let mut program = Program::default();
    let plan = program.plan(vec![(key, Some(of(2)))]).unwrap();
    program.applied(plan);
    let plan = program.plan(vec![(key, Some(of(3)))]).unwrap();
    assert_eq!(plan.changes.len(), 3, "{:?}", plan.changes);
    program.applied(plan);
    assert_eq!(program.plan(vec![(key, Some(of(3)))]).unwrap().changes, []);
}

#[test]
fn without_pod_networks_no_client_of_cluster_ips_is_masqueraded() {
    let kept = |facts: &Facts| {
        let elements = fact_elements(facts, Gate::Open);
        elements.keys().filter(|(set, _)| set.kind == SetKind::Kept).count()
    };
    assert_eq!(kept(&Facts::default()), 2);
    assert_eq!(kept(&Facts { masquerade: MasqueradeScope::All, ..Facts::default() }), 0);
}

#[test]
fn overlapping_networks_become_one_interval() {
    let cidrs = ["10.0.0.0/8", "10.244.0.0/16", "fd00::/64"].map(|text| text.parse().unwrap());
    assert_eq!(prefixes(Family::Ip, &cidrs).len(), 1);
    assert_eq!(prefixes(Family::Ip6, &cidrs).len(), 1);
}
