//! Foreign input changed at random, for the tests of whatever reads it. Short by default;
//! `PROPTEST_CASES=1000000` looks longer.

use std::path::Path;

use proptest::prelude::*;

use crate::credentials::kubeconfig::{self, Endpoint};
use crate::static_pods::manifest;

/// A few splices in one of the inputs.
pub(crate) fn mutated(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        &b""[..],
        b"\0",
        b"..",
        b"/",
        b"//",
        b"%2e",
        b"%2F",
        b"%00",
        b"%",
        b"&",
        b"=",
        b"-1",
        b"18446744073709551616",
        b"\xff\xff\xff\xff",
        b"\x80\x03",
        b"\x7f\xff\xff\xff",
    ]);
    let piece =
        prop_oneof![word.prop_map(<[u8]>::to_vec), prop::collection::vec(any::<u8>(), 0..6)];
    let edit = (any::<prop::sample::Index>(), 0_usize..12, piece);
    (prop::sample::select(corpus), prop::collection::vec(edit, 0..6)).prop_map(|(base, edits)| {
        let mut bytes = base;
        for (place, removed, added) in edits {
            let at = place.index(bytes.len() + 1);
            let end = (at + removed).min(bytes.len());
            bytes.splice(at..end, added);
        }
        bytes
    })
}

const KUBECONFIG: &str = r#"
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: k, cluster: {server: "https://192.0.2.1:6443", certificate-authority-data: QQ==}}]
contexts: [{name: c, context: {cluster: k, user: u, namespace: n}}]
users:
- {name: u, user: {token: t, exec: {apiVersion: client.authentication.k8s.io/v1, command: x}}}
"#;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p, labels: &a {x: y}, annotations: *a}
spec:
  hostNetwork: true
  containers: [{name: c, image: "i:1", command: ["sh", "-c", "a"], resources: {limits: {cpu: 1}}}]
"#;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_kubeconfig_is_read_or_refused(bytes in mutated(vec![KUBECONFIG.as_bytes().to_vec()])) {
        let root = tempfile::tempdir().unwrap();
        let (path, copy) = (root.path().join("kubeconfig"), root.path().join("copy"));
        std::fs::write(&path, bytes).unwrap();
        let _ = kubeconfig::has_user(&path);
        let _ = kubeconfig::names_certificate(&path, Path::new("/x"));
        if Endpoint::of_file(&path).is_ok() {
            kubeconfig::copy(&path, &copy).unwrap();
            prop_assert!(Endpoint::of_file(&copy).is_ok(), "a copy is read as well");
        }
    }

    #[test]
    fn any_file_of_a_static_pod_is_a_pod_or_refused(
        bytes in mutated(vec![POD.as_bytes().to_vec()])
    ) {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(pod) = manifest::pod(&text, Path::new("/etc/pods/p.yaml"), "node-1") {
            prop_assert!(pod.metadata.name.is_some_and(|name| name.ends_with("-node-1")));
        }
    }
}

/// A short text whose aliases stand for 10^9 words (CVE-2019-11253).
#[test]
fn aliases_that_multiply_are_refused() {
    let mut text =
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  a0: &a0 [x]\n".to_owned();
    for depth in 1..=9 {
        let aliases = vec![format!("*a{}", depth - 1); 10].join(", ");
        text.push_str(&format!("  a{depth}: &a{depth} [{aliases}]\n"));
    }
    let begun = std::time::Instant::now();
    let refused = manifest::pod(&text, Path::new("/etc/pods/p.yaml"), "node-1").unwrap_err();
    assert!(matches!(refused, manifest::Error::Malformed(_)), "{refused}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}
