//! Configuration changed at random: fields with other fields' values, lines lost and doubled, bytes that
//! are none. Every stream is read or refused by line; what is read resolves or names its faults.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{Documents, parse};
use crate::settings::Kubelet;

const STREAM: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: /ca.crt}}
clusterDNS: [10.96.0.10]
containerLogMaxSize: 10Mi
crashLoopBackOff: {maxContainerRestartPeriod: 5m}
enableSystemLogQuery: true
featureGates: {NodeLogQuery: true}
kubeReserved: &reserved {cpu: 100m, memory: 1Gi}
systemReserved: *reserved
maxPods: 110
nodeStatusMaxImages: -1
nodeStatusUpdateFrequency: 10s
podPidsLimit: 4096
registerWithTaints: [{key: a, effect: NoSchedule}]
streamingConnectionIdleTimeout: 4h0m0s
tlsCipherSuites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.0.0.0/16,fd00::/64
---
apiVersion: berth/v1alpha1
kind: NodeConfiguration
mtu: 1400
";

/// What stands where something else is expected.
const ODD: [&str; 16] = [
    "",
    "~",
    "-1",
    "1e999",
    "18446744073709551616",
    "[]",
    "{}",
    "*none",
    "&x [*x]",
    "!!binary x",
    "\"\\u0000\"",
    "999999999999h",
    "- - -",
    "|",
    "\u{feff}",
    "? ",
];

/// Something done to a line.
#[derive(Debug, Clone)]
enum Edit {
    Drop,
    Double,
    Value(String),
    Cut(Index),
}

fn stream() -> impl Strategy<Value = String> {
    let edit = prop_oneof![
        Just(Edit::Drop),
        Just(Edit::Double),
        select(ODD.to_vec()).prop_map(|odd| Edit::Value(odd.to_owned())),
        "\\PC{0,12}".prop_map(Edit::Value),
        any::<Index>().prop_map(Edit::Cut),
    ];
    prop::collection::vec((any::<Index>(), edit), 0..5).prop_map(|edits| {
        let mut lines: Vec<String> = STREAM.lines().map(str::to_owned).collect();
        for (place, edit) in edits {
            let at = place.index(lines.len().max(1)).min(lines.len().saturating_sub(1));
            let Some(line) = lines.get_mut(at) else { break };
            match edit {
                Edit::Drop => drop(lines.remove(at)),
                Edit::Double => {
                    let line = line.clone();
                    lines.insert(at, line);
                }
                Edit::Value(value) => {
                    let name = line.split(':').next().unwrap_or_default();
                    *line = format!("{name}: {value}");
                }
                Edit::Cut(to) => {
                    let to = to.index(line.len() + 1);
                    line.truncate(line.floor_char_boundary(to));
                }
            }
        }
        lines.join("\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_configuration_is_read_or_refused_by_line(text in stream()) {
        match parse(&text) {
            Ok(documents) => {
                let _ = Kubelet::resolve(&documents.kubelet);
                // What was written can be put over another configuration.
                let over = Documents::default().put_fields_over(&documents.written);
                prop_assert!(documents.written.is_empty() || over.is_ok(), "{over:?}");
            }
            Err(errors) => prop_assert!(errors.iter().all(|one| one.to_string().contains("line "))),
        }
    }
}

#[test]
fn the_configuration_that_is_changed_is_right_as_it_is() {
    assert!(Kubelet::resolve(&parse(STREAM).unwrap().kubelet).is_ok());
}
