//! Certificate signing requests (PKCS #10, RFC 2986) and the two signers of nodes' certificates
//! (`certificates.k8s.io/v1`): what a request says, and whether a signer signs it. Pure.
//!
//! The subject of what is signed is written anew from what was read here, so that nothing goes from a
//! request into a certificate that no rule has looked at.

mod rules;

use std::net::IpAddr;

use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::object::ObjectExt;

pub(crate) use rules::{Signer, approved_by};

/// The largest request that is parsed.
const MAX_BYTES: usize = 64 << 10;

/// What a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// The common name.
    pub common_name: String,
    /// The organizations, in their order.
    pub organizations: Vec<String>,
    /// The DNS names.
    pub dns_names: Vec<String>,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether something else is to be in the certificate: other names, other parts of a subject.
    pub has_more: bool,
    /// The public key (SubjectPublicKeyInfo, DER).
    pub public_key: Vec<u8>,
}

/// A request that cannot be read, or that the holder of its key did not sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// No PEM block of the right kind, or more than one thing.
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    /// The block holds something else.
    #[error("the request is no PKCS #10 certificate signing request")]
    Der,
    /// The signature is not by the key in it.
    #[error("the request is not signed by its own key")]
    Signature,
    /// A name is not text, or not one value a part.
    #[error("the request's subject cannot be read")]
    Subject,
}

impl Request {
    /// Reads a request in PEM, as the API carries it.
    ///
    /// # Errors
    /// When it is not one.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, Malformed> {
        if pem.len() > MAX_BYTES {
            return Err(Malformed::Pem);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|_| Malformed::Pem)?;
        let (rest, request) =
            X509CertificationRequest::from_der(der.as_ref()).map_err(|_| Malformed::Der)?;
        if !rest.is_empty() {
            return Err(Malformed::Der);
        }
        request.verify_signature().map_err(|_| Malformed::Signature)?;
        let info = &request.certification_request_info;
        let mut read = Self { public_key: info.subject_pki.raw.to_vec(), ..Self::default() };
        for part in info.subject.iter() {
            let mut values = part.iter();
            let (Some(value), None) = (values.next(), values.next()) else {
                return Err(Malformed::Subject);
            };
            let text = value.as_str().map_err(|_| Malformed::Subject)?.to_owned();
            match value.attr_type().to_id_string().as_str() {
                COMMON_NAME if read.common_name.is_empty() => read.common_name = text,
                ORGANIZATION => read.organizations.push(text),
                _ => read.has_more = true,
            }
        }
        for extension in request.requested_extensions().into_iter().flatten() {
            read.take(extension);
        }
        Ok(read)
    }

    fn take(&mut self, extension: &ParsedExtension<'_>) {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
                        GeneralName::IPAddress(octets) => match address(octets) {
                            Some(address) => self.addresses.push(address),
                            None => self.has_more = true,
                        },
                        _ => self.has_more = true,
                    }
                }
            }
            // What the certificate is for is said by the object's usages.
            ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_) => {}
            ParsedExtension::BasicConstraints(constraints) => self.has_more |= constraints.ca,
            _ => self.has_more = true,
        }
    }

    /// Reads the request of an object.
    ///
    /// # Errors
    /// As [`Request::from_pem`].
    pub(crate) fn of_object(object: &Value) -> Result<Self, Malformed> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let pem = STANDARD.decode(object.text("/spec/request")).map_err(|_| Malformed::Pem)?;
        Self::from_pem(&pem)
    }
}

const COMMON_NAME: &str = "2.5.4.3";
const ORGANIZATION: &str = "2.5.4.10";

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    /// A request in PEM for a subject and names.
    pub(crate) fn pem(name: &str, organization: &str, names: &[&str]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, name);
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            });
        }
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn a_request_says_who_and_which_names() {
        let pem = pem("system:node:n1", "system:nodes", &["n1", "10.0.0.1", "fd00::1"]);
        let read = Request::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(read.common_name, "system:node:n1");
        assert_eq!(read.organizations, ["system:nodes"]);
        assert_eq!(read.dns_names, ["n1"]);
        assert_eq!(read.addresses.len(), 2);
        assert!(!read.has_more && !read.public_key.is_empty());
    }

    #[test]
    fn what_is_no_request_or_was_changed_is_malformed() {
        assert_eq!(Request::from_pem(b"nothing"), Err(Malformed::Pem));
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(Request::from_pem(certificate.as_bytes()), Err(Malformed::Pem));
        let empty =
            "-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n";
        assert_eq!(Request::from_pem(empty.as_bytes()), Err(Malformed::Der));
        // Another name under the same signature.
        let pem = pem("system:node:n1", "system:nodes", &[]);
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut bytes = der.as_ref().to_vec();
        let at = bytes.windows(14).position(|w| w == b"system:node:n1").unwrap();
        bytes[at + 13] = b'2';
        let (_, changed) = X509CertificationRequest::from_der(&bytes).unwrap();
        assert!(changed.verify_signature().is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(0u8.., 0..400)) {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            let text = STANDARD.encode(&bytes);
            let pem = format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n"
            );
            let _ = Request::from_pem(pem.as_bytes());
            let _ = Request::from_pem(&bytes);
        }

        #[test]
        fn no_bit_flipped_changes_what_is_read(at in 0usize..200, bit in 0u8..8) {
            let pem = pem("system:node:n1", "system:nodes", &["n1"]);
            let before = Request::from_pem(pem.as_bytes()).unwrap();
            let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
            let mut bytes = der.as_ref().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            let pem = format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
                STANDARD.encode(&bytes)
            );
            if let Ok(read) = Request::from_pem(pem.as_bytes()) {
                proptest::prop_assert_eq!(read, before);
            }
        }
    }
}
