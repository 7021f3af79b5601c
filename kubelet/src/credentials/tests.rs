//! Keeping and timing certificates; the requests themselves are tested in [`super::request`], and all
//! of it together against an API server by the end-to-end tests.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair};

use super::kubeconfig::{self, Endpoint, User};
use super::renewal::{Node, due};
use super::store::{Pair, Store};
use crate::clock::SystemClock;

/// A certificate and key that hold for these years.
fn pem(name: &str, (from, to): (i32, i32)) -> String {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = rcgen::date_time_ymd(from, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(to, 1, 1);
    let certificate = parameters.self_signed(&key).unwrap();
    format!("{}{}", certificate.pem(), key.serialize_pem())
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn a_pair_must_fit_together() {
    let (one, other) = (pem("a", (2020, 2030)), pem("b", (2020, 2030)));
    assert_eq!(Pair::from_pem(&one).unwrap().name, "a");
    let split = one.find("-----BEGIN PRIVATE").unwrap();
    assert!(Pair::from_pem(&one[..split]).is_err(), "no key");
    assert!(Pair::from_pem(&one[split..]).is_err(), "no certificate");
    let mixed = format!("{}{}", &one[..split], &other[other.find("-----BEGIN PRIVATE").unwrap()..]);
    assert!(Pair::from_pem(&mixed).is_err(), "another's key");
}

#[test]
fn the_newest_is_in_force_and_only_its_owner_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::client(dir.path().join("pki"));
    assert!(store.current().is_none());
    for (second, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let pair = Pair::from_pem(&pem(name, (2020, 2030))).unwrap();
        // Two within the same second.
        let time = at("2026-01-01T00:00:00Z") + jiff::SignedDuration::from_secs(second as i64 / 2);
        store.keep(&pair, time).unwrap();
        assert_eq!(store.current().unwrap().name, name);
    }
    let modes: Vec<_> = std::fs::read_dir(dir.path().join("pki"))
        .unwrap()
        .map(|entry| std::fs::symlink_metadata(entry.unwrap().path()).unwrap())
        .filter(|facts| facts.is_file())
        .map(|facts| facts.permissions().mode() & 0o777)
        .collect();
    assert_eq!(modes, [0o600, 0o600], "the one in force and the one before");
    let link = std::fs::read_link(store.current_path()).unwrap();
    assert_eq!(link.to_str().unwrap(), "kubelet-client-2026-01-01-00-00-01.01.pem");
}

#[test]
fn a_key_is_kept_until_its_request_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::client(dir.path());
    let key = store.pending_key().unwrap().serialize_pem();
    assert_eq!(store.pending_key().unwrap().serialize_pem(), key);
    store.forget_pending();
    let next = store.pending_key().unwrap().serialize_pem();
    assert_ne!(next, key);
    let pair = Pair::from_pem(&pem("a", (2020, 2030))).unwrap();
    store.keep(&pair, at("2026-01-01T00:00:00Z")).unwrap();
    assert_ne!(store.pending_key().unwrap().serialize_pem(), next);
}

#[test]
fn renewal_is_due_at_seventy_to_ninety_per_cent() {
    let pair = Pair::from_pem(&pem("a", (2020, 2030))).unwrap();
    let life = pair.not_after.duration_since(pair.not_before).as_secs_f64();
    for (portion, share) in [(0.0, 0.7), (0.5, 0.8), (1.0, 0.9), (7.0, 0.9)] {
        let at = due(&pair, portion).duration_since(pair.not_before).as_secs_f64();
        assert!((at / life - share).abs() < 1e-6, "{portion}: {}", at / life);
    }
}

#[test]
fn a_node_needs_a_certificate_when_its_own_is_missing_or_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::client(dir.path().join("pki"));
    let node = Node {
        name: "n1".into(),
        kubeconfig: dir.path().join("kubelet.conf"),
        bootstrap: None,
        store: store.clone(),
        clock: Arc::new(SystemClock),
    };
    assert!(node.needs_certificate());
    let endpoint = Endpoint::new("https://192.0.2.1:6443", "CA");
    kubeconfig::write(&node.kubeconfig, &endpoint, &User::Certificate(store.current_path()))
        .unwrap();
    assert!(node.needs_certificate() && node.is_renewed_here());
    store
        .keep(&Pair::from_pem(&pem("n1", (2020, 2021))).unwrap(), at("2020-01-01T00:00:00Z"))
        .unwrap();
    assert!(node.needs_certificate(), "it is over");
    store.keep(&Pair::from_pem(&pem("n1", (2020, 2099))).unwrap(), Timestamp::now()).unwrap();
    assert!(!node.needs_certificate());
    assert_eq!(Endpoint::of_file(&node.kubeconfig).unwrap(), endpoint);
    // Somebody else's credentials are not looked after here.
    kubeconfig::write(&node.kubeconfig, &endpoint, &User::Token("secret".into())).unwrap();
    assert!(!node.needs_certificate() && !node.is_renewed_here());
    assert!(kubeconfig::has_user(&node.kubeconfig).unwrap());
    let mode = std::fs::metadata(&node.kubeconfig).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
