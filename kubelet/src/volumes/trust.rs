//! `clusterTrustBundle`: certificates of the cluster's trust bundles (`certificates.k8s.io`) in one
//! file, each once. Pure.
//!
//! Differs: upstream shuffles the certificates at each start; here they are in the order of their
//! bytes, so that a restart changes no file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::VolumeError;

/// How PEM breaks its lines.
const COLUMNS: usize = 64;

/// What the file of a projection holds.
pub(super) fn content(
    source: &ClusterTrustBundleProjection,
    bundles: &[ClusterTrustBundle],
) -> Result<Vec<u8>, VolumeError> {
    let (chosen, missing): (Vec<_>, _) = match (&source.name, &source.signer_name) {
        (Some(name), _) => (
            bundles.iter().filter(|b| b.metadata.name.as_ref() == Some(name)).collect(),
            format!("clustertrustbundle.certificates.k8s.io {name:?} not found"),
        ),
        (None, Some(signer)) => (
            bundles
                .iter()
                .filter(|b| b.spec.signer_name.as_ref() == Some(signer))
                .filter(|b| selects(source.label_selector.as_ref(), b.metadata.labels.as_ref()))
                .collect(),
            "combination of signerName and labelSelector matched zero ClusterTrustBundles".into(),
        ),
        (None, None) => {
            let why = "ClusterTrustBundle projection requires either name or signerName to be set";
            return Err(VolumeError::Source(why.to_owned()));
        }
    };
    if chosen.is_empty() && source.optional != Some(true) {
        return Err(VolumeError::Source(missing));
    }
    let mut certificates = BTreeSet::new();
    for bundle in chosen {
        let found = CertificateDer::pem_slice_iter(bundle.spec.trust_bundle.as_bytes());
        certificates.extend(found.filter_map(Result::ok).map(|certificate| certificate.to_vec()));
    }
    Ok(certificates.iter().fold(String::new(), written).into_bytes())
}

fn written(mut text: String, certificate: &Vec<u8>) -> String {
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    let encoded = STANDARD.encode(certificate);
    for line in encoded.as_bytes().chunks(COLUMNS) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Whether a selector takes these labels: none takes nothing, an empty one everything.
fn selects(selector: Option<&LabelSelector>, labels: Option<&BTreeMap<String, String>>) -> bool {
    let Some(selector) = selector else { return false };
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    let mut equal = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    equal.all(|(key, value)| label(key) == Some(value))
        && expressions.all(|expression| {
            let found = label(&expression.key);
            let named =
                || found.is_some_and(|f| expression.values.iter().flatten().any(|v| v == f));
            match expression.operator.as_str() {
                "In" => named(),
                "NotIn" => !named(),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pem(certificate: &[u8]) -> String {
        written(String::new(), &certificate.to_vec())
    }

    fn chosen(source: Value) -> Result<String, String> {
        let bundle = |name: &str, signer: Value, tier: &str, text: String| {
            json!({"metadata": {"name": name, "labels": {"tier": tier}},
                   "spec": {"signerName": signer, "trustBundle": text}})
        };
        let (a, b) = (pem(b"a"), pem(&[b'b'; 100]));
        let bundles: Vec<ClusterTrustBundle> = serde_json::from_value(json!([
            bundle("own", Value::Null, "x", format!("note\n{b}{a}between\n{b}")),
            bundle("x:y:1", "x/y".into(), "live", a),
            bundle("x:y:2", "x/y".into(), "canary", b),
            bundle("x:z:1", "x/z".into(), "live", pem(b"c")),
        ]))
        .unwrap();
        let source = serde_json::from_value(source).unwrap();
        let content = content(&source, &bundles).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(content).unwrap())
    }

    #[test]
    fn certificates_are_there_once_and_in_one_order() {
        let both = format!("{}{}", pem(b"a"), pem(&[b'b'; 100]));
        assert!(both.lines().all(|line| line.len() <= 64), "{both}");
        let by_name = chosen(json!({"path": "f", "name": "own"})).unwrap();
        assert_eq!(by_name, both, "without the text around");
        for (selector, expected) in [
            (json!({}), both.clone()),
            (json!({"matchLabels": {"tier": "live"}}), pem(b"a")),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["live"]}]}),
                pem(&[b'b'; 100]),
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["live", "canary"]},
                                            {"key": "none", "operator": "DoesNotExist"}]}),
                both.clone(),
            ),
        ] {
            let source = json!({"path": "f", "signerName": "x/y", "labelSelector": selector});
            assert_eq!(chosen(source).unwrap(), expected, "{selector}");
        }
    }

    #[test]
    fn what_is_missing_is_an_error_unless_it_is_optional() {
        for (mut source, why) in [
            (
                json!({"path": "f", "name": "none"}),
                "clustertrustbundle.certificates.k8s.io \"none\" not found",
            ),
            (json!({"path": "f", "signerName": "x/y"}), "matched zero ClusterTrustBundles"),
            (
                json!({"path": "f", "signerName": "q/q", "labelSelector": {}}),
                "matched zero ClusterTrustBundles",
            ),
        ] {
            let error = chosen(source.clone()).unwrap_err();
            assert!(error.contains(why), "{error}");
            source["optional"] = true.into();
            assert_eq!(chosen(source), Ok(String::new()));
        }
        assert!(chosen(json!({"path": "f", "optional": true})).is_err());
    }
}
