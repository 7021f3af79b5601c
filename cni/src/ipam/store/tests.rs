//! Leases through restarts, torn files and random sequences, on a temporary directory.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn open(dir: &TempDir, cidrs: &[&str]) -> Store {
    let ranges = cidrs.iter().map(|c| Range::new(c.parse().unwrap()).unwrap()).collect();
    Store::open(&dir.path().join("ipam"), ranges).unwrap()
}

fn id(n: usize) -> AttachmentId {
    AttachmentId::try_from(format!("pod-{n}")).unwrap()
}

fn lease_files(dir: &TempDir) -> BTreeSet<String> {
    fs::read_dir(dir.path().join("ipam/leases"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

const DUAL: &[&str] = &["10.0.0.0/28", "fd00::/64"];

#[test]
fn leases_survive_a_restart_and_the_order_goes_on() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, DUAL);
    let lease = store.acquire(&id(0), &[]).unwrap();
    assert_eq!(lease.origin, Origin::Fresh);
    store.unsynced().sync().unwrap();
    store.acquire(&id(1), &[]).unwrap();
    store.release(&id(1)).unwrap();
    drop(store);

    let store = open(&dir, DUAL);
    let again = store.acquire(&id(0), &[]).unwrap();
    assert_eq!(again.record, lease.record);
    assert_eq!(again.origin, Origin::Held);
    let next = store.acquire(&id(2), &[]).unwrap().record.addresses;
    assert_eq!(next, ["10.0.0.4".parse::<IpAddr>().unwrap(), "fd00::4".parse().unwrap()]);
}

#[test]
fn a_torn_lease_is_restored_from_its_sibling() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, DUAL);
    let record = store.acquire(&id(0), &[]).unwrap().record;
    drop(store);
    fs::write(dir.path().join("ipam/leases/10.0.0.2"), r#"{"attachment":"po"#).unwrap();

    let store = open(&dir, DUAL);
    assert_eq!(store.get(&id(0)), Some(record));
    assert_eq!(lease_files(&dir).len(), 2);
    assert!(dir.path().join("ipam/quarantine/10.0.0.2.0").exists());
}

#[test]
fn rubbish_in_the_directory_is_put_aside_and_stops_nothing() {
    let dir = TempDir::new().unwrap();
    let leases = dir.path().join("ipam/leases");
    fs::create_dir_all(leases.join("10.0.0.2")).unwrap();
    fs::write(leases.join("10.0.0.3"), "\n").unwrap();
    fs::write(leases.join("..10.0.0.4"), "x").unwrap();
    fs::write(leases.join("10.0.0.5"), [0xff, 0xfe]).unwrap();
    let wrong = r#"{"attachment":"a","addresses":["10.0.0.9"],"host_ports":[]}"#;
    fs::write(leases.join("10.0.0.6"), wrong).unwrap();
    std::os::unix::fs::symlink("/dev/zero", leases.join("10.0.0.7")).unwrap();

    let store = open(&dir, DUAL);
    assert!(store.records().is_empty());
    assert!(lease_files(&dir).is_empty());
    assert_eq!(fs::read_dir(dir.path().join("ipam/quarantine")).unwrap().count(), 6);
}

/// Whoever is killed between making the file and writing it has given nobody the address.
#[test]
fn a_lease_that_was_never_written_leaves_nothing_and_its_address_is_free() {
    let dir = TempDir::new().unwrap();
    let leases = dir.path().join("ipam/leases");
    fs::create_dir_all(&leases).unwrap();
    fs::write(leases.join("10.0.0.2"), "").unwrap();

    let store = open(&dir, DUAL);
    assert!(lease_files(&dir).is_empty());
    assert_eq!(fs::read_dir(dir.path().join("ipam/quarantine")).map_or(0, Iterator::count), 0);
    let given = store.acquire(&id(0), &[]).unwrap().record.addresses;
    assert_eq!(given[0], "10.0.0.2".parse::<IpAddr>().unwrap());
}

#[test]
fn an_address_whose_file_appears_from_elsewhere_is_skipped() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, DUAL);
    fs::write(dir.path().join("ipam/leases/fd00::2"), "somebody else's").unwrap();
    let record = store.acquire(&id(0), &[]).unwrap().record;
    assert!(!record.addresses.contains(&"fd00::2".parse().unwrap()));
    assert_eq!(lease_files(&dir).len(), 3);
}

#[test]
fn a_directory_is_used_by_one_network_at_a_time() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, DUAL);
    let range = Range::new("10.0.0.0/28".parse().unwrap()).unwrap();
    let second = Store::open(&dir.path().join("ipam"), vec![range]).unwrap_err();
    assert!(second.to_string().ends_with("is in use by another pod network"), "{second}");
    drop(store);
    open(&dir, DUAL);
}

#[test]
fn erasing_leaves_nothing_but_what_others_put_there() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, DUAL);
    store.acquire(&id(0), &[]).unwrap();
    store.erase().unwrap();
    assert!(!dir.path().join("ipam").exists());

    let store = open(&dir, DUAL);
    fs::write(dir.path().join("ipam/foreign"), "").unwrap();
    store.erase().unwrap();
    assert!(dir.path().join("ipam/foreign").exists());
}

#[test]
fn a_record_known_to_the_kernel_alone_is_adopted_once() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, DUAL);
    let record = Record {
        attachment: id(7),
        addresses: vec!["10.0.0.9".parse().unwrap()],
        host_ports: Vec::new(),
    };
    assert!(store.adopt(record.clone()).unwrap());
    assert!(!store.adopt(Record { attachment: id(8), ..record }).unwrap());
    assert_eq!(lease_files(&dir), BTreeSet::from(["10.0.0.9".to_owned()]));
}

#[derive(Debug, Clone)]
enum Step {
    Acquire(usize),
    Release(usize),
    Restart,
    /// Cuts the n-th lease file of one family to a length, then restarts.
    Tear(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..24usize).prop_map(Step::Acquire),
        6 => (0..24usize).prop_map(Step::Release),
        1 => Just(Step::Restart),
        1 => (0..32usize, 0..40usize).prop_map(|(n, length)| Step::Tear(n, length)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// One /28 and one /64: whatever happens, no address has two holders, nobody's address
    /// changes while it is held, the range is exhausted only when it is full, and the disk agrees.
    #[test]
    fn no_sequence_ever_gives_one_address_twice(steps in prop::collection::vec(step(), 1..120)) {
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let mut store = open(&dir, DUAL);
        let mut held: BTreeMap<usize, Vec<IpAddr>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Acquire(n) => match store.acquire(&id(n), &[]) {
                    Ok(lease) => {
                        let addresses = lease.record.addresses;
                        if let Some(before) = held.insert(n, addresses.clone()) {
                            prop_assert_eq!(before, addresses);
                        }
                    }
                    Err(error) => {
                        prop_assert!(matches!(error, Error::Exhausted(_)), "{}", error);
                        prop_assert_eq!(held.len(), 13);
                        prop_assert!(!held.contains_key(&n));
                    }
                },
                Step::Release(n) => {
                    store.release(&id(n)).unwrap();
                    held.remove(&n);
                }
                Step::Restart => {
                    drop(store);
                    store = open(&dir, DUAL);
                }
                Step::Tear(n, length) => {
                    drop(store);
                    if let Some(name) = lease_files(&dir).into_iter().nth(n) {
                        let path = dir.path().join("ipam/leases").join(name);
                        File::options().write(true).open(path).unwrap().set_len(length as u64).unwrap();
                    }
                    store = open(&dir, DUAL);
                }
            }
            let all: Vec<_> = held.values().flatten().collect();
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
            let files: BTreeSet<_> = all.iter().map(|ip| ip.to_string()).collect();
            prop_assert_eq!(lease_files(&dir), files);
        }
    }
}

#[test]
fn ten_thousand_pods_through_a_28_with_kills_leak_no_lease() {
    // In memory where possible: the disk is not what is tested.
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let cidr = &["10.0.0.0/28"];
    let mut store = open(&dir, cidr);
    let mut live: Vec<usize> = Vec::new();
    for n in 0..10_000 {
        match store.acquire(&id(n), &[]) {
            Ok(_) => live.push(n),
            Err(Error::Exhausted(_)) => assert_eq!(live.len(), 13),
            Err(error) => panic!("{error}"),
        }
        if n % 97 == 0 {
            // Killed: whoever comes after knows only what the disk says.
            drop(store);
            store = open(&dir, cidr);
            assert_eq!(store.records().len(), live.len());
        }
        if live.len() > n % 14 {
            store.release(&id(live.remove(n % live.len()))).unwrap();
        }
    }
    for n in live {
        store.release(&id(n)).unwrap();
    }
    assert!(lease_files(&dir).is_empty());
}
