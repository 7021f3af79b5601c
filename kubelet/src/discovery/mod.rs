//! Learning which cluster this is from nothing but an address and a bootstrap token, as `kubeadm join`
//! does.
//!
//! ```text
//! cluster-info, from whoever answers ─► signed with the token? ─► an authority that is pinned?
//!        └─► asked again over TLS that this authority vouches for: the same text? ─► believed
//! ```
//!
//! Until the last step nothing that came over the network is used for more than comparing: of the
//! description only the address and the authorities are ever taken, so that it can bring neither
//! commands to run nor credentials.

mod pin;
mod token;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::AsyncReadExt;
use k8s_openapi::api::core::v1::ConfigMap;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

pub use pin::{MalformedPin, Pin};
pub use token::{MalformedToken, Token};

use crate::api_retry::Retry;
use crate::credentials::kubeconfig::Endpoint;

/// Where the description is.
const PATH: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";

/// The largest answer that is read.
const MAX_BYTES: u64 = 1 << 20;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(15);

/// Why a cluster is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is none.
    #[error("{0:?} is no address of an API server (expected HOST:PORT)")]
    Address(String),
    /// The API server does not answer.
    #[error("cannot read the cluster's description from {server}")]
    Fetch {
        /// Who was asked.
        server: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// It does not answer in time, or with more than is read.
    #[error("{server} did not answer in time, or said too much")]
    Endless {
        /// Who was asked.
        server: String,
    },
    /// The description is none.
    #[error("the cluster's description cannot be used: {0}")]
    Malformed(String),
    /// The token is unknown there.
    #[error(
        "the cluster does not know token {0}: it has expired, or is not for signing (kubeadm token list)"
    )]
    UnknownToken(String),
    /// Somebody without the token wrote the description.
    #[error(
        "the cluster's description is not signed with token {0}: this is another cluster, or somebody stands between"
    )]
    Signature(String),
    /// The authority is not the one that was named.
    #[error("none of the cluster's authorities has a public key that was given; theirs are {}", .0.join(", "))]
    Pin(Vec<String>),
    /// The two descriptions differ.
    #[error("the cluster's description was another one over a verified connection")]
    Changed,
}

impl Error {
    /// Whether it may be otherwise in a moment: the server starts, or has not signed yet.
    fn is_passing(&self) -> bool {
        matches!(self, Self::Fetch { .. } | Self::Endless { .. } | Self::UnknownToken(_))
    }
}

/// Which authorities are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those with one of these public keys.
    Pins(Vec<Pin>),
    /// Whichever the description names: whoever knows the token can pose as the cluster.
    TokenAlone,
}

/// Learns the cluster at an address, asking until `patience` is over while nobody answers.
///
/// # Errors
/// What could not be believed, at once; what could not be reached, in the end.
pub async fn discover(
    server: &str,
    (token, trust): (&Token, &Trust),
    patience: Duration,
) -> Result<Endpoint, Error> {
    let url = address(server)?;
    let begin = tokio::time::Instant::now();
    let mut retry = Retry::default();
    loop {
        let error = match once(&url, token, trust).await {
            Ok(endpoint) => return Ok(endpoint),
            Err(error) => error,
        };
        let wait = retry.next_wait(None).min(Duration::from_secs(5));
        if !error.is_passing() || begin.elapsed() + wait > patience {
            return Err(error);
        }
        tracing::warn!(error = crate::worker::chain(&error), "cluster not known yet, asking again");
        tokio::time::sleep(wait).await;
    }
}

async fn once(url: &str, token: &Token, trust: &Trust) -> Result<Endpoint, Error> {
    let mut blind = config(url)?;
    blind.accept_invalid_certs = true;
    // Nor are the host's own authorities asked for, which may not be there.
    blind.root_cert = Some(Vec::new());
    let first = fetch(url, blind).await?;
    let text = text(&first)?;
    let signature = first.data.iter().flatten().find(|(key, _)| **key == token.signature_key());
    let (_, signature) = signature.ok_or_else(|| Error::UnknownToken(token.id().to_owned()))?;
    if !token.signed(text, signature) {
        return Err(Error::Signature(token.id().to_owned()));
    }
    let described = Described::read(text)?;
    if let Trust::Pins(pins) = trust {
        described.check(pins)?;
    }
    let mut verified = config(url)?;
    verified.root_cert = Some(described.authorities.iter().map(|der| der.to_vec()).collect());
    let second = fetch(url, verified).await?;
    if self::text(&second)? != text {
        return Err(Error::Changed);
    }
    Ok(Endpoint::new(&described.server, &described.authority_pem))
}

/// `https://HOST:PORT`, from that or from `HOST:PORT`.
fn address(server: &str) -> Result<String, Error> {
    let wrong = || Error::Address(server.to_owned());
    let rest = server.strip_prefix("https://").unwrap_or(server).trim_end_matches('/');
    let uri: axum::http::Uri = format!("https://{rest}").parse().map_err(|_| wrong())?;
    let plain = uri.path() == "/" && uri.query().is_none() && !rest.contains('@');
    match plain && uri.host().is_some() && uri.port_u16().is_some() {
        true => Ok(format!("https://{rest}")),
        false => Err(wrong()),
    }
}

fn config(url: &str) -> Result<kube::Config, Error> {
    let mut config = kube::Config::new(url.parse().map_err(|_| Error::Address(url.to_owned()))?);
    config.connect_timeout = Some(REQUEST);
    config.default_retry = false;
    Ok(config)
}

/// Reads the description as anybody may.
async fn fetch(url: &str, config: kube::Config) -> Result<ConfigMap, Error> {
    let failed = |source| Error::Fetch { server: url.to_owned(), source: Box::new(source) };
    let endless = || Error::Endless { server: url.to_owned() };
    let client = kube::Client::try_from(config).map_err(failed)?;
    let request = axum::http::Request::get(PATH).body(Vec::new());
    let request = request.map_err(|_| Error::Address(url.to_owned()))?;
    let read = async {
        let stream = client.request_stream(request).await.map_err(failed)?;
        let mut bytes = Vec::new();
        let mut stream = std::pin::pin!(stream.take(MAX_BYTES));
        stream.read_to_end(&mut bytes).await.map_err(|_| endless())?;
        Ok(bytes)
    };
    let bytes = tokio::time::timeout(REQUEST, read).await.map_err(|_| endless())??;
    serde_json::from_slice(&bytes).map_err(|error| Error::Malformed(error.to_string()))
}

fn text(description: &ConfigMap) -> Result<&str, Error> {
    let data = description.data.as_ref().and_then(|data| data.get("kubeconfig"));
    data.map(String::as_str).ok_or_else(|| Error::Malformed("it has no kubeconfig".to_owned()))
}

/// The parts of a public kubeconfig that are looked at.
#[derive(Debug, Deserialize)]
struct Public {
    clusters: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

/// A cluster as it describes itself.
#[derive(Debug)]
struct Described {
    server: String,
    authority_pem: String,
    authorities: Vec<CertificateDer<'static>>,
}

impl Described {
    fn read(text: &str) -> Result<Self, Error> {
        let malformed = |why: &dyn std::fmt::Display| Error::Malformed(why.to_string());
        let public: Public = serde_saphyr::from_str(text).map_err(|error| malformed(&error))?;
        let [Named { cluster }] = &public.clusters[..] else {
            return Err(malformed(&"it names not exactly one cluster"));
        };
        let server = address(&cluster.server)?;
        let bytes = STANDARD.decode(&cluster.certificate_authority_data);
        let bytes = bytes.map_err(|error| malformed(&error))?;
        let authority_pem = String::from_utf8(bytes).map_err(|error| malformed(&error))?;
        let authorities: Vec<_> = CertificateDer::pem_slice_iter(authority_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| malformed(&error))?;
        match authorities.is_empty() {
            true => Err(malformed(&"it has no certificate authority")),
            false => Ok(Self { server, authority_pem, authorities }),
        }
    }

    fn check(&self, pins: &[Pin]) -> Result<(), Error> {
        let theirs: Vec<Pin> =
            self.authorities.iter().filter_map(|der| Pin::of_certificate(der)).collect();
        match theirs.iter().any(|pin| pins.contains(pin)) {
            true => Ok(()),
            false => Err(Error::Pin(theirs.iter().map(Pin::to_string).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate() -> (String, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let made = CertificateParams::default().self_signed(&key).unwrap();
        (made.pem(), made.der().clone())
    }

    fn described(extra: &str, authority: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: ''\n  cluster:\n    server: \
             https://192.0.2.1:6443\n    certificate-authority-data: {}\n{extra}",
            STANDARD.encode(authority)
        )
    }

    #[test]
    fn an_address_is_a_host_and_a_port_and_nothing_else() {
        for good in ["10.0.0.1:6443", "https://10.0.0.1:6443/", "[fd00::1]:6443", "api.example:443"]
        {
            assert!(address(good).is_ok(), "{good}");
        }
        assert_eq!(address("10.0.0.1:6443").unwrap(), "https://10.0.0.1:6443");
        for bad in ["", "10.0.0.1", "http://10.0.0.1:80", "10.0.0.1:6443/x", "a@b:1", "a:b:c"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn of_a_description_only_address_and_authorities_are_taken() {
        let (pem, der) = certificate();
        let users = "users:\n- name: x\n  user:\n    exec: {command: /bin/evil, apiVersion: x}\n";
        let read = Described::read(&described(users, &pem)).unwrap();
        assert_eq!(read.server, "https://192.0.2.1:6443");
        assert_eq!(read.authorities, [der]);
        for bad in ["", "clusters: []", "clusters: 7", "[", &described("", "no certificate")] {
            assert!(Described::read(bad).is_err(), "{bad}");
        }
        let twice = described("- name: b\n  cluster: {server: 'a:1'}\n", &pem);
        assert!(Described::read(&twice).is_err());
    }

    #[test]
    fn an_authority_that_is_not_pinned_is_refused_with_its_pin() {
        let ((pem, der), (_, other)) = (certificate(), certificate());
        let read = Described::read(&described("", &pem)).unwrap();
        let pin = |der: &CertificateDer<'_>| Pin::of_certificate(der).unwrap();
        assert!(read.check(&[pin(&other), pin(&der)]).is_ok());
        let refused = read.check(&[pin(&other)]).unwrap_err().to_string();
        assert!(refused.contains(&pin(&der).to_string()), "{refused}");
        assert!(read.check(&[]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_reading_a_description_panic(text in "\\PC{0,200}") {
            let _ = Described::read(&text);
            let _ = address(&text);
        }
    }
}
