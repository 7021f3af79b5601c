//! A CertificateSigningRequest from its making to its answer, as upstream's kubelet makes them.
//!
//! The object's name follows from the key, so that asking twice with one key asks once; a denied
//! request is not asked again with the same key.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use kube::api::{Api, ObjectMeta, PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData, SanType};
use sha2::{Digest, Sha256};

use super::store::{self, Pair};

/// How long one request to the API server may take.
const REQUEST: Duration = Duration::from_secs(15);

/// How long an answer is waited for before the agent says so and waits again.
const WAIT: Duration = Duration::from_secs(15 * 60);

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Being the node, towards the API server.
    Client,
    /// Serving the node's API under these names and addresses.
    Serving {
        /// DNS names.
        names: Vec<String>,
        /// Addresses.
        addresses: Vec<IpAddr>,
    },
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request cannot be made.
    #[error("cannot make a certificate signing request")]
    Make(#[from] rcgen::Error),
    /// The API server did not take it.
    #[error("cannot create certificate signing request {name}")]
    Create {
        /// The request's name.
        name: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("the API server did not answer in {} s", .0.as_secs())]
    Silent(Duration),
    /// The answer cannot be waited for.
    #[error("cannot watch certificate signing request {name}")]
    Watch {
        /// The request's name.
        name: String,
        /// Why.
        #[source]
        source: Box<kube::runtime::wait::Error>,
    },
    /// Nobody approved it.
    #[error(
        "certificate signing request {name} was not approved yet (kubectl certificate approve {name})"
    )]
    Pending {
        /// The request's name.
        name: String,
    },
    /// It was denied, or the signer does not sign it.
    #[error("certificate signing request {name} was refused: {why}")]
    Refused {
        /// The request's name.
        name: String,
        /// What was said.
        why: String,
    },
    /// Somebody deleted it.
    #[error("certificate signing request {name} is gone")]
    Gone {
        /// The request's name.
        name: String,
    },
    /// What came is no certificate for this key and node.
    #[error("the certificate of request {name} cannot be used")]
    Unusable {
        /// The request's name.
        name: String,
        /// Why.
        #[source]
        source: store::Error,
    },
}

/// Asks for a certificate and waits for it.
///
/// # Errors
/// [`Error::Pending`] can be waited for again with the same key; after [`Error::Refused`] another key
/// is needed.
pub async fn issue(
    client: &kube::Client,
    node: &str,
    (purpose, key): (&Purpose, &KeyPair),
) -> Result<Pair, Error> {
    let request = object(node, purpose, key)?;
    let name = request.metadata.name.clone().unwrap_or_default();
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let parameters = PostParams::default();
    match tokio::time::timeout(REQUEST, api.create(&parameters, &request)).await {
        Ok(Ok(_)) => tracing::info!(request = name, "certificate asked for"),
        // Asked with this key before: its answer is waited for.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
        Ok(Err(source)) => return Err(Error::Create { name, source: Box::new(source) }),
        Err(_) => return Err(Error::Silent(REQUEST)),
    }
    let answered = |request: Option<&CertificateSigningRequest>| request.is_none_or(is_answered);
    let waiting = kube::runtime::wait::await_condition(api, &name, answered);
    let answer = match tokio::time::timeout(WAIT, waiting).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) => return Err(Error::Gone { name }),
        Ok(Err(source)) => return Err(Error::Watch { name, source: Box::new(source) }),
        Err(_) => return Err(Error::Pending { name }),
    };
    let chain = certificate(&name, &answer)?;
    let unusable = |source| Error::Unusable { name: name.clone(), source };
    let pair = Pair::from_pem(&format!("{chain}\n{}", key.serialize_pem())).map_err(unusable)?;
    match pair.name == user(node) {
        true => Ok(pair),
        false => Err(unusable(store::Error::Unusable(format!("it is for {:?}", pair.name)))),
    }
}

/// A node's user name.
fn user(node: &str) -> String {
    format!("system:node:{node}")
}

fn object(
    node: &str,
    purpose: &Purpose,
    key: &KeyPair,
) -> Result<CertificateSigningRequest, rcgen::Error> {
    let mut parameters = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, user(node));
    parameters.distinguished_name = subject;
    let (signer, usage, start) = match purpose {
        Purpose::Client => {
            ("kubernetes.io/kube-apiserver-client-kubelet", "client auth", "node-csr")
        }
        Purpose::Serving { names, addresses } => {
            for name in names {
                let name = name.as_str().try_into()?;
                parameters.subject_alt_names.push(SanType::DnsName(name));
            }
            let addresses = addresses.iter().map(|address| SanType::IpAddress(*address));
            parameters.subject_alt_names.extend(addresses);
            ("kubernetes.io/kubelet-serving", "server auth", "node-serving-csr")
        }
    };
    let request = parameters.serialize_request(key)?.pem()?;
    let digest = Sha256::new().chain_update(user(node)).chain_update(key.der_bytes()).finalize();
    let digest: String = digest.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(format!("{start}-{digest}")), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: signer.to_owned(),
            // Keys here are ECDSA, which encipher nothing.
            usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

fn conditions(request: &CertificateSigningRequest) -> impl Iterator<Item = (&str, String)> {
    let all = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    all.map(|one| {
        let parts = [one.reason.as_deref(), one.message.as_deref()];
        let said: Vec<_> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
        (one.type_.as_str(), said.join(": "))
    })
}

fn issued(request: &CertificateSigningRequest) -> Option<&[u8]> {
    let bytes = &request.status.as_ref()?.certificate.as_ref()?.0;
    (!bytes.is_empty()).then_some(bytes)
}

fn is_answered(request: &CertificateSigningRequest) -> bool {
    let refused = conditions(request).any(|(kind, _)| matches!(kind, "Denied" | "Failed"));
    refused || issued(request).is_some()
}

fn certificate(name: &str, request: &CertificateSigningRequest) -> Result<String, Error> {
    let refused = conditions(request).find(|(kind, _)| matches!(*kind, "Denied" | "Failed"));
    if let Some((kind, said)) = refused {
        let why = format!("{kind} ({said})");
        return Err(Error::Refused { name: name.to_owned(), why });
    }
    let bytes = issued(request).ok_or_else(|| Error::Gone { name: name.to_owned() })?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    };

    use super::*;

    #[test]
    fn a_request_says_what_upstreams_kubelet_says_and_is_named_by_its_key() {
        let key = KeyPair::generate().unwrap();
        let one = object("n1", &Purpose::Client, &key).unwrap();
        assert_eq!(one.spec.signer_name, "kubernetes.io/kube-apiserver-client-kubelet");
        assert_eq!(one.spec.usages.clone().unwrap(), ["digital signature", "client auth"]);
        let again = object("n1", &Purpose::Client, &key).unwrap();
        assert_eq!(one.metadata.name, again.metadata.name);
        let other = KeyPair::generate().unwrap();
        let other = object("n1", &Purpose::Client, &other).unwrap();
        assert_ne!(one.metadata.name, other.metadata.name);
        let serving =
            Purpose::Serving { names: vec!["n1".into()], addresses: vec![[10, 0, 0, 1].into()] };
        let serving = object("n1", &serving, &key).unwrap();
        assert_eq!(serving.spec.signer_name, "kubernetes.io/kubelet-serving");
        assert_ne!(one.metadata.name, serving.metadata.name);
    }

    #[test]
    fn a_denial_is_an_answer_though_a_certificate_is_there() {
        let key = KeyPair::generate().unwrap();
        let mut request = object("n1", &Purpose::Client, &key).unwrap();
        assert!(!is_answered(&request));
        let condition = |kind: &str| CertificateSigningRequestCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            message: Some("no".to_owned()),
            ..CertificateSigningRequestCondition::default()
        };
        let mut status = CertificateSigningRequestStatus {
            conditions: Some(vec![condition("Approved")]),
            certificate: None,
        };
        request.status = Some(status.clone());
        assert!(!is_answered(&request), "approved is not yet signed");
        status.certificate = Some(ByteString(b"PEM".to_vec()));
        request.status = Some(status.clone());
        assert_eq!(certificate("r", &request).unwrap(), "PEM");
        status.conditions = Some(vec![condition("Denied")]);
        request.status = Some(status);
        let refused = certificate("r", &request).unwrap_err().to_string();
        assert!(refused.contains("Denied (no)"), "{refused}");
    }
}
