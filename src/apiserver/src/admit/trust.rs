//! Rules for cluster trust bundles: a name that says whose they are, and certificates of authorities,
//! each once.
//!
//! Differs: upstream asks besides for the right to `attest` for the signer; here who may write bundles
//! may write all.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use x509_parser::pem::Pem;

use crate::failure::Cause;
use crate::object::ObjectExt;

/// What a bundle may hold.
const MAX_BYTES: usize = 1 << 20;
const FIELD: &str = "spec.trustBundle";

/// Checks a bundle.
pub(super) fn check(object: &Value, causes: &mut Vec<Cause>) {
    let signer = object.text("/spec/signerName");
    let name = object.name();
    if signer.is_empty() {
        if name.contains(':') {
            let why = "a bundle without a signer must not have ':' in its name";
            causes.push(Cause::invalid("metadata.name", &json!(name), why));
        }
    } else if !matches!(signer.split_once('/'), Some((domain, path)) if domain.contains('.') && !path.is_empty())
    {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        causes.push(Cause::invalid("spec.signerName", &json!(signer), why));
    } else {
        let prefix = format!("{}:", signer.replacen('/', ":", 1));
        if !name.strip_prefix(&prefix).is_some_and(|rest| !rest.is_empty() && !rest.contains(':')) {
            let why = format!("must be {prefix:?} and a name, as the bundle has this signer");
            causes.push(Cause::invalid("metadata.name", &json!(name), &why));
        }
    }
    if let Err(why) = certificates(object.text("/spec/trustBundle")) {
        causes.push(Cause::invalid(FIELD, &json!("<value omitted>"), &why));
    }
}

/// Checks a changed bundle.
pub(super) fn check_update(current: &Value, wanted: &Value, causes: &mut Vec<Cause>) {
    let signer = wanted.text("/spec/signerName");
    if current.text("/spec/signerName") != signer {
        causes.push(Cause::invalid("spec.signerName", &json!(signer), "field is immutable"));
    }
}

fn certificates(text: &str) -> Result<(), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("must have at most {MAX_BYTES} bytes"));
    }
    let mut seen = BTreeSet::new();
    for (index, block) in Pem::iter_from_buffer(text.as_bytes()).enumerate() {
        let block = block.map_err(|_| format!("entry {index} is no PEM"))?;
        if block.label != "CERTIFICATE" {
            return Err(format!("entry {index} has bad block type: {}", block.label));
        }
        let certificate =
            block.parse_x509().map_err(|_| format!("entry {index} does not parse as X.509"))?;
        let constraints = certificate.basic_constraints();
        let constraints =
            constraints.map_err(|_| format!("entry {index} has invalid basic constraints"))?;
        if !constraints.is_some_and(|constraints| constraints.value.ca) {
            return Err(format!("entry {index} does not have the CA bit set"));
        }
        if !seen.insert(block.contents) {
            return Err(format!("entry {index} is there twice"));
        }
    }
    let has_headers = text.lines().any(|line| line.contains(": ") && is_within(text, line));
    match seen.is_empty() {
        true => Err("at least one trust anchor must be provided".to_owned()),
        false if has_headers => Err("PEM blocks must not have headers".to_owned()),
        false => Ok(()),
    }
}

/// Whether a line lies in a block: what is between blocks is a comment.
fn is_within(text: &str, line: &str) -> bool {
    let at = line.as_ptr() as usize - text.as_ptr() as usize;
    let before = &text[..at];
    before.matches("-----BEGIN ").count() > before.matches("-----END ").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(is_ca: rcgen::IsCa) -> String {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = is_ca;
        parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn faults(name: &str, signer: &str, text: &str) -> String {
        let mut causes = Vec::new();
        let object = json!({"metadata": {"name": name},
                            "spec": {"signerName": signer, "trustBundle": text}});
        check(&object, &mut causes);
        format!("{causes:?}")
    }

    #[test]
    fn a_bundle_holds_authorities_and_is_named_after_its_signer() {
        let unlimited = || rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let (one, two) = (certificate(unlimited()), certificate(unlimited()));
        let both = format!("a note: here\n{one}another: one\n{two}");
        assert_eq!(faults("own", "", &both), "[]");
        assert_eq!(faults("a.io:signer:x", "a.io/signer", &one), "[]");
        let headers = one.replacen("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1);
        for (name, signer, text, why) in [
            ("a.io:signer:x", "", &*one, "without a signer"),
            ("x", "a.io/signer", &one, "as the bundle has this signer"),
            ("a.io:signer:x:y", "a.io/signer", &one, "as the bundle has this signer"),
            ("x", "signer", &one, "fully qualified"),
            ("x", "", "", "at least one"),
            ("x", "", "text alone", "at least one"),
            ("x", "", &format!("{one}{one}"), "entry 1 is there twice"),
            ("x", "", &certificate(rcgen::IsCa::NoCa), "does not have the CA bit"),
            ("x", "", &one.replace("CERTIFICATE", "PUBLIC KEY"), "bad block type: PUBLIC KEY"),
            ("x", "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "X.509"),
            ("x", "", &headers, "entry 0"),
        ] {
            let found = faults(name, signer, text);
            assert!(found.contains(why), "{why:?} is not in {found}");
        }
    }
}
