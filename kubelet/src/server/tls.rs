//! The serving certificate and the verification of client certificates.
//!
//! Without a certificate from the operator one is made, signed by itself, and kept in `<root>/pki`
//! with its key (0600) for as long as it fits the node's names and has a month to live.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CipherSuite, RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::{CertificateFiles, Config};
use crate::replace::{Lasting, replace};

/// How long a certificate of our own lasts.
const LIFETIME_DAYS: i64 = 365;

/// What must be left of it, or another is made.
const LEFT_DAYS: i64 = 30;

const DAY: i64 = 24 * 3600;

/// The acceptor, made anew when a file that it is made from has changed. Connections that are open
/// stay as they are.
pub struct Live {
    config: Config,
    now: Mutex<(Stamp, TlsAcceptor)>,
}

/// When each file was changed; a file that is not there has no time.
type Stamp = [Option<SystemTime>; 3];

impl Live {
    /// Makes the first acceptor.
    ///
    /// # Errors
    /// As [`acceptor`].
    pub fn new(config: &Config) -> Result<Self, Error> {
        let made = acceptor(config)?;
        Ok(Self { config: config.clone(), now: Mutex::new((stamp(config), made)) })
    }

    /// The acceptor of the files as they are now. Files that cannot be used change nothing.
    pub fn acceptor(&self) -> TlsAcceptor {
        let newest = stamp(&self.config);
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if now.0 != newest {
            match acceptor(&self.config) {
                Ok(made) => {
                    tracing::info!("certificates and client authorities read again");
                    now.1 = made;
                }
                Err(error) => {
                    let error = crate::worker::chain(&error);
                    tracing::error!(error, "changed certificates cannot be used");
                }
            }
            // Said once, not at every connection.
            now.0 = newest;
        }
        now.1.clone()
    }
}

fn stamp(config: &Config) -> Stamp {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|facts| facts.modified()).ok();
    let server = &config.server;
    let files = server.certificate.as_ref();
    [
        server.client_ca.as_deref().and_then(changed),
        files.and_then(|files| changed(&files.certificate)),
        files.and_then(|files| changed(&files.key)),
    ]
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM file cannot be read.
    #[error("cannot read {what} from {path:?}")]
    Read {
        /// `certificate`, `key` or `client authority`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file has nothing of its kind in it.
    #[error("no {what} in {path:?}")]
    Empty {
        /// `certificate` or `client authority`.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A certificate of our own cannot be kept.
    #[error("cannot write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate of our own cannot be made.
    #[error("cannot make a serving certificate")]
    Generate(#[from] rcgen::Error),
    /// Certificate and key do not fit.
    #[error("cannot serve with certificate {path:?}")]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The client authority cannot be used.
    #[error("cannot verify clients against {path:?}")]
    Authority {
        /// The authority's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What connections are accepted with.
pub fn acceptor(config: &Config) -> Result<TlsAcceptor, Error> {
    let files = match shown(config) {
        Some(files) => files.clone(),
        None => own_certificate(config)?,
    };
    let chain = certificates("certificate", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| Error::Read {
        what: "key",
        path: files.key.clone(),
        source,
    })?;
    let unusable = |source| Error::Unusable { path: files.certificate.clone(), source };
    let offered = &config.server.tls;
    let versions: &[&SupportedProtocolVersion] = match offered.only_13 {
        true => &[&rustls::version::TLS13],
        false => rustls::DEFAULT_VERSIONS,
    };
    let mut provider = rustls::crypto::ring::default_provider();
    if !offered.suites.is_empty() {
        // Those of TLS 1.3 are all safe, and upstream's list does not touch them either.
        provider
            .cipher_suites
            .retain(|suite| suite.tls13().is_some() || offered.suites.contains(&suite.suite()));
    }
    let builder = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .map_err(unusable)?;
    let builder = match client_verifier(config.server.client_ca.as_deref())? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_single_cert(chain, key).map_err(unusable)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

/// The files of a certificate that is not our own, where one is to be shown. One that is asked of the
/// cluster is shown from when it is there.
fn shown(config: &Config) -> Option<&CertificateFiles> {
    let files = config.server.certificate.as_ref()?;
    (!config.server.certificate_is_requested || files.certificate.exists()).then_some(files)
}

/// The suite of TLS 1.2 that upstream calls so; `None` for one that is not offered.
pub fn suite(name: &str) -> Option<CipherSuite> {
    let full = match name.ends_with("_CHACHA20_POLY1305") {
        true => format!("{name}_SHA256"),
        false => name.to_owned(),
    };
    let provider = rustls::crypto::ring::default_provider();
    let mut known = provider.cipher_suites.iter().map(|suite| suite.suite());
    known.find(|suite| suite.as_str() == Some(&*full))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = |source| Error::Read { what, path: path.to_owned(), source };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(read)?
        .collect::<Result<_, _>>()
        .map_err(read)?;
    match found.is_empty() {
        true => Err(Error::Empty { what, path: path.to_owned() }),
        false => Ok(found),
    }
}

/// A certificate is asked for and verified, but its absence is answered by HTTP, not by TLS.
fn client_verifier(path: Option<&Path>) -> Result<Option<Arc<dyn ClientCertVerifier>>, Error> {
    let Some(path) = path else {
        return Ok(None);
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("client authority", path)? {
        roots.add(certificate).map_err(|source| Error::Authority {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build();
    let verifier = verifier
        .map_err(|source| Error::Authority { path: path.to_owned(), source: Box::new(source) })?;
    Ok(Some(verifier))
}

/// The certificate of our own: the one that is kept, or a new one.
fn own_certificate(config: &Config) -> Result<CertificateFiles, Error> {
    let directory = config.root_dir.join("pki");
    let files = CertificateFiles {
        certificate: directory.join("kubelet.crt"),
        key: directory.join("kubelet.key"),
    };
    let now = config.clock.now();
    if fits(&files, config, now) {
        return Ok(files);
    }
    std::fs::create_dir_all(&directory)
        .map_err(|source| Error::Write { path: directory.clone(), source })?;
    let mut names: Vec<String> = config.node_ips.iter().map(IpAddr::to_string).collect();
    names.push(config.hostname.clone());
    if config.node_name != config.hostname {
        names.push(config.node_name.clone());
    }
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(names)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, format!("system:node:{}", config.node_name));
    subject.push(DnType::OrganizationName, "system:nodes");
    parameters.distinguished_name = subject;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (year, month, first) = day(now, -DAY);
    parameters.not_before = rcgen::date_time_ymd(year, month, first);
    let (year, month, last) = day(now, LIFETIME_DAYS * DAY);
    parameters.not_after = rcgen::date_time_ymd(year, month, last);
    let certificate = parameters.self_signed(&key)?;
    write(&files.key, key.serialize_pem().as_bytes(), 0o600)?;
    write(&files.certificate, certificate.pem().as_bytes(), 0o644)?;
    tracing::info!(path = %files.certificate.display(), "serving certificate made");
    Ok(files)
}

/// The SHA-256 of the certificate of our own, hexadecimal; `None` while there is none, or where the
/// operator gave one.
pub fn own_digest(config: &Config) -> Option<String> {
    if shown(config).is_some() {
        return None;
    }
    let chain = certificates("certificate", &config.root_dir.join("pki/kubelet.crt")).ok()?;
    let digest = Sha256::digest(chain.first()?.as_ref());
    Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The calendar day, `offset` seconds from now.
fn day(now: Timestamp, offset: i64) -> (i32, u8, u8) {
    let seconds = now.as_second().saturating_add(offset);
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
    let part = |number: i8| number.unsigned_abs().max(1);
    (i32::from(date.year()), part(date.month()), part(date.day()))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    replace(path, bytes, mode, Lasting::PowerCut)
        .map_err(|source| Error::Write { path: path.to_owned(), source })
}

/// Whether the certificate that is kept names the node as it is now and lasts.
fn fits(files: &CertificateFiles, config: &Config, now: Timestamp) -> bool {
    let Ok(chain) = certificates("certificate", &files.certificate) else {
        return false;
    };
    let has_key = PrivateKeyDer::from_pem_file(&files.key).is_ok();
    let parsed = chain.first().map(|der| X509Certificate::from_der(der));
    let Some(Ok((_, certificate))) = parsed.filter(|_| has_key) else {
        return false;
    };
    let lasts = certificate.validity().not_after.timestamp() - now.as_second() > LEFT_DAYS * DAY;
    let names = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => &extension.value.general_names,
        _ => return false,
    };
    let has_name = |wanted: &str| {
        let mut names = names.iter();
        names.any(|n| matches!(n, GeneralName::DNSName(name) if *name == wanted))
    };
    let has_ip = |wanted: &IpAddr| {
        let octets = match wanted {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let mut names = names.iter();
        names.any(|n| matches!(n, GeneralName::IPAddress(ip) if *ip == octets))
    };
    lasts && has_name(&config.hostname) && config.node_ips.iter().all(has_ip)
}
