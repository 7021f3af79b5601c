//! Keys and certificates: one CA, the server's, clients' and the kubelet's certificates, kept in
//! a directory as PEM. Certificates are made again when they near their end or no longer fit;
//! the CA stays.

pub(crate) mod kubeconfig;
mod pinned;

pub(crate) use pinned::pinned;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::signing::{Request, Signer};

/// How long a CA lives.
const CA_DAYS: i64 = 3650;
/// How long a certificate lives.
const LEAF_DAYS: i64 = 365;
/// A certificate with less than this left is made again.
const RENEW_DAYS: i64 = 90;

/// Keys or certificates cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("access {path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate cannot be made.
    #[error("make a certificate for {name}")]
    Make {
        /// Its common name.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no usable key or certificate: {why}")]
    Unusable {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// TLS refuses the configuration.
    #[error("set up TLS: {0}")]
    Tls(String),
}

/// A certificate and its key, as PEM and as files.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// The certificate.
    pub cert_pem: String,
    /// The private key.
    pub key_pem: String,
    /// Where the certificate is.
    pub cert_path: PathBuf,
    /// Where the key is, 0600.
    pub key_path: PathBuf,
}

/// What a certificate is for.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// File name without its ending.
    pub file: &'static str,
    /// Common name.
    pub name: String,
    /// Organization, which is the group of a client.
    pub organization: Option<&'static str>,
    /// Names and addresses of a server; none makes a client's certificate.
    pub server: Option<(Vec<String>, Vec<IpAddr>)>,
}

/// The certificate authority.
pub(crate) struct Authority {
    dir: PathBuf,
    /// The longest life of what [`Authority::sign`] signs.
    longest: Duration,
    issuer: Issuer<'static, KeyPair>,
    pair: Pair,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.dir.display())
    }
}

impl Authority {
    /// Reads the CA in `dir`, or makes one. Blocking.
    ///
    /// # Errors
    /// When files cannot be accessed or hold something else.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        make_private_dir(dir)?;
        let pair = match read_pair(dir, "ca")? {
            Some(pair) => pair,
            None => make_ca(dir)?,
        };
        let unusable = |why: String| Error::Unusable { path: pair.cert_path.clone(), why };
        let key = KeyPair::from_pem(&pair.key_pem).map_err(|error| Error::Unusable {
            path: pair.key_path.clone(),
            why: error.to_string(),
        })?;
        if seconds_left(&pair.cert_pem).is_none_or(|left| left <= 0) {
            return Err(unusable("it is malformed or has expired".into()));
        }
        let issuer = Issuer::from_ca_cert_pem(&pair.cert_pem, key)
            .map_err(|error| unusable(error.to_string()))?;
        let longest = Duration::from_secs(LEAF_DAYS.unsigned_abs() * 86_400);
        Ok(Self { dir: dir.to_owned(), longest, issuer, pair })
    }

    /// The same, which signs requests for at most so long.
    pub(crate) fn signing_for(self, longest: Duration) -> Self {
        Self { longest, ..self }
    }

    /// The CA's certificate.
    pub(crate) fn cert_pem(&self) -> &str {
        &self.pair.cert_pem
    }

    /// Where the CA's certificate is.
    pub(crate) fn cert_path(&self) -> &Path {
        &self.pair.cert_path
    }

    /// The pair for a subject: the one on disk, or a new one when that is missing, was not made
    /// by this CA for this subject, or nears its end. Blocking.
    ///
    /// # Errors
    /// When files cannot be accessed.
    pub(crate) fn pair(&self, subject: &Subject) -> Result<Pair, Error> {
        match read_pair(&self.dir, subject.file)? {
            Some(pair) if self.fits(&pair, subject) => Ok(pair),
            _ => self.issue(subject),
        }
    }

    fn fits(&self, pair: &Pair, subject: &Subject) -> bool {
        let fresh = seconds_left(&pair.cert_pem).is_some_and(|left| left > RENEW_DAYS * 86_400);
        // The names that a certificate was made for are remembered beside it.
        let note = std::fs::read_to_string(self.dir.join(format!("{}.for", subject.file)));
        fresh && note.is_ok_and(|note| note == self.note(subject))
    }

    fn note(&self, subject: &Subject) -> String {
        let authority = seconds_of(&self.pair.cert_pem).unwrap_or_default();
        format!("{subject:?} by {authority}")
    }

    /// Signs a request that its signer has checked, for as long as it asks, at most as long as this
    /// authority signs for. The certificate, PEM.
    ///
    /// # Errors
    /// When the key in the request cannot be used.
    pub(crate) fn sign(
        &self,
        request: &Request,
        signer: Signer,
        seconds: Option<i64>,
    ) -> Result<String, rcgen::Error> {
        let key = SubjectPublicKeyInfo::from_der(&request.public_key)?;
        let mut params = CertificateParams::default();
        let organization = request.organizations.first().map(String::as_str);
        params.distinguished_name = distinguished(&request.common_name, organization);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![match signer {
            Signer::NodeClient => ExtendedKeyUsagePurpose::ClientAuth,
            Signer::NodeServing => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        for name in &request.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        let addresses = request.addresses.iter().map(|address| SanType::IpAddress(*address));
        params.subject_alt_names.extend(addresses);
        let asked = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts =
            asked.map_or(self.longest, |seconds| Duration::from_secs(seconds).min(self.longest));
        let left = seconds_left(&self.pair.cert_pem).and_then(|left| u64::try_from(left).ok());
        let lasts = lasts.min(Duration::from_secs(left.unwrap_or(0)));
        let now = SystemTime::now();
        // For clocks that differ; of a short life only a little.
        params.not_before = (now - (lasts / 10).min(Duration::from_secs(300))).into();
        params.not_after = (now + lasts).into();
        Ok(params.signed_by(&key, &self.issuer)?.pem())
    }

    fn issue(&self, subject: &Subject) -> Result<Pair, Error> {
        let failed = |source| Error::Make { name: subject.name.clone(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished(&subject.name, subject.organization);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, LEAF_DAYS);
        params.extended_key_usages = vec![match &subject.server {
            Some(_) => ExtendedKeyUsagePurpose::ServerAuth,
            None => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        for name in subject.server.iter().flat_map(|(names, _)| names) {
            let name = name.clone().try_into().map_err(failed)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        for address in subject.server.iter().flat_map(|(_, addresses)| addresses) {
            params.subject_alt_names.push(SanType::IpAddress(*address));
        }
        let key = KeyPair::generate().map_err(failed)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let pair = write_pair(&self.dir, subject.file, (cert.pem(), key.serialize_pem()))?;
        write_private(&self.dir.join(format!("{}.for", subject.file)), &self.note(subject))?;
        Ok(pair)
    }
}

fn make_ca(dir: &Path) -> Result<Pair, Error> {
    let failed = |source| Error::Make { name: "berth-ca".into(), source };
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished("berth-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    set_validity(&mut params, CA_DAYS);
    let key = KeyPair::generate().map_err(failed)?;
    let cert = params.self_signed(&key).map_err(failed)?;
    write_pair(dir, "ca", (cert.pem(), key.serialize_pem()))
}

fn distinguished(name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if let Some(organization) = organization {
        distinguished.push(DnType::OrganizationName, organization);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From a little ago, for clocks that differ, to `days` from now.
fn set_validity(params: &mut CertificateParams, days: i64) {
    let now = std::time::SystemTime::now();
    let days = std::time::Duration::from_secs(u64::try_from(days).unwrap_or(1) * 86_400);
    params.not_before = (now - std::time::Duration::from_secs(300)).into();
    params.not_after = (now + days).into();
}

fn seconds_left(cert_pem: &str) -> Option<i64> {
    Some(seconds_of(cert_pem)? - jiff::Timestamp::now().as_second())
}

/// When a certificate ends, in seconds since 1970.
fn seconds_of(cert_pem: &str) -> Option<i64> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

fn make_private_dir(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(|source| Error::File { path: dir.to_owned(), source })
}

fn paths(dir: &Path, file: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")))
}

fn read_pair(dir: &Path, file: &str) -> Result<Option<Pair>, Error> {
    let (cert_path, key_path) = paths(dir, file);
    let read = |path: &Path| match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    };
    Ok(match (read(&cert_path)?, read(&key_path)?) {
        (Some(cert_pem), Some(key_pem)) => Some(Pair { cert_pem, key_pem, cert_path, key_path }),
        _ => None,
    })
}

fn write_pair(
    dir: &Path,
    file: &str,
    (cert_pem, key_pem): (String, String),
) -> Result<Pair, Error> {
    let (cert_path, key_path) = paths(dir, file);
    write_private(&key_path, &key_pem)?;
    write_private(&cert_path, &cert_pem)?;
    Ok(Pair { cert_pem, key_pem, cert_path, key_path })
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&temporary);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| Error::File { path: path.to_owned(), source })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca_pem: &str) -> Result<RootCertStore, Error> {
    let tls = |error: &dyn std::fmt::Display| Error::Tls(error.to_string());
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| tls(&e))?;
    roots.add(ca).map_err(|e| tls(&e))?;
    Ok(roots)
}

fn parsed(pair: &Pair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let tls = |error: rustls::pki_types::pem::Error| Error::Tls(error.to_string());
    let cert = CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).map_err(tls)?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).map_err(tls)?;
    Ok((vec![cert], key))
}

/// Something in use that can be replaced while it is.
#[derive(Debug)]
pub(crate) struct Live<T>(RwLock<Arc<T>>);

impl<T> Live<T> {
    /// Starts with a first one.
    pub(crate) fn new(first: T) -> Self {
        Self(RwLock::new(Arc::new(first)))
    }

    /// The one in use now.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Uses another one from now on.
    pub(crate) fn replace(&self, next: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

/// A pair as rustls uses it.
///
/// # Errors
/// When it is unusable.
pub(crate) fn certified(pair: &Pair) -> Result<CertifiedKey, Error> {
    let (chain, key) = parsed(pair)?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| Error::Tls(error.to_string()))
}

impl ResolvesServerCert for Live<CertifiedKey> {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

/// TLS for the listener: client certificates of this CA are accepted, none is demanded.
///
/// # Errors
/// When the CA is unusable.
pub(crate) fn server_tls(
    ca_pem: &str,
    serving: Arc<Live<CertifiedKey>>,
) -> Result<ServerConfig, Error> {
    let tls = |error: String| Error::Tls(error);
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| tls(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS towards the node's own API.
///
/// # Errors
/// When the pair or the CA is unusable.
pub(crate) fn client_tls(ca_pem: &str, pair: &Pair) -> Result<ClientConfig, Error> {
    let (chain, key) = parsed(pair)?;
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Tls(error.to_string()))?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_auth_cert(chain, key)
        .map_err(|error| Error::Tls(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::access::Identity;

    fn admin() -> Subject {
        Subject {
            file: "admin",
            name: "admin".into(),
            organization: Some("system:masters"),
            server: None,
        }
    }

    #[test]
    fn certificates_persist_and_are_made_again_when_they_do_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path()).unwrap().pair(&admin()).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        assert_eq!(authority.pair(&admin()).unwrap().cert_pem, first.cert_pem);
        let other = Subject { name: "somebody".into(), ..admin() };
        assert_ne!(authority.pair(&other).unwrap().cert_pem, first.cert_pem);
    }

    #[test]
    fn the_subject_is_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let pair = Authority::open(dir.path()).unwrap().pair(&admin()).unwrap();
        let der = CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap();
        let identity = Identity::of_certificate(&der).unwrap();
        assert_eq!(identity.user, "admin");
        assert!(identity.is_master());
    }

    #[test]
    fn keys_are_private_and_a_broken_ca_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(authority.cert_path(), "nonsense").unwrap();
        let error = Authority::open(dir.path()).err().unwrap();
        assert!(error.to_string().contains("ca.crt"), "{error}");
    }
}
