//! A certificate with its key on disk, in upstream's form: `<name>-<time>.pem` holds both (0600), and
//! the link `<name>-current.pem` names the newest. Written whole or not at all; the one before stays.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::replace::{Lasting, replace};

/// How many certificates are kept: the one in use, and the one before.
const KEPT: usize = 2;

/// A certificate or key cannot be kept or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot access {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The text holds no certificate with its key.
    #[error("no certificate with its key: {0}")]
    Unusable(String),
    /// No key can be made.
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pem: String,
    /// The node's user name, or whoever it is for.
    pub name: String,
    /// From when it holds.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pair({}, until {})", self.name, self.not_after)
    }
}

impl Pair {
    /// Reads both from PEM; they must fit together.
    ///
    /// # Errors
    /// When they do not, or one is missing.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let unusable = |why: &dyn std::fmt::Display| Error::Unusable(why.to_string());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(&error))?;
        let leaf = chain.first().cloned().ok_or_else(|| unusable(&"no certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| unusable(&e))?;
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(chain, key, &provider).map_err(|error| unusable(&error))?;
        let (_, certificate) = X509Certificate::from_der(&leaf).map_err(|e| unusable(&e))?;
        let name = certificate.subject().iter_common_name().next();
        let name = name.and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned();
        let time = |at: x509_parser::time::ASN1Time| {
            Timestamp::from_second(at.timestamp()).map_err(|error| unusable(&error))
        };
        Ok(Self {
            pem: pem.to_owned(),
            name,
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
        })
    }

    /// Whether it does not hold any more.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.not_after
    }
}

/// Where certificates of one sort are.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    name: &'static str,
}

impl Store {
    /// The client certificates in a directory.
    pub fn client(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), name: "kubelet-client" }
    }

    /// The serving certificates in a directory.
    pub fn serving(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), name: "kubelet-server" }
    }

    /// The link that names the newest.
    pub fn current_path(&self) -> PathBuf {
        self.directory.join(format!("{}-current.pem", self.name))
    }

    /// The newest; `None` where there is none that could be used.
    pub fn current(&self) -> Option<Pair> {
        let text = fs::read_to_string(self.current_path()).ok()?;
        Pair::from_pem(&text)
            .inspect_err(|error| {
                let path = self.current_path();
                tracing::warn!(%error, path = %path.display(), "certificate cannot be used");
            })
            .ok()
    }

    /// Keeps a certificate as the newest. Forgets the key that it was asked with, and the oldest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, pair: &Pair, now: Timestamp) -> Result<(), Error> {
        make_private(&self.directory)?;
        let time = now.strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let free = (0..100)
            .map(|count| match count {
                0 => format!("{}-{time}.pem", self.name),
                count => format!("{}-{time}.{count:02}.pem", self.name),
            })
            .find(|name| !self.directory.join(name).exists())
            .ok_or_else(|| Error::Unusable(format!("a hundred certificates of {time}")))?;
        write_private(&self.directory.join(&free), &pair.pem)?;
        let link = self.current_path();
        let temporary = self.directory.join(format!("{}-current.new", self.name));
        let _ = fs::remove_file(&temporary);
        symlink(&free, &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .map_err(|source| Error::File { path: link, source })?;
        let _ = fs::remove_file(self.pending_path());
        self.forget_oldest();
        Ok(())
    }

    /// The key that a certificate is being asked for, made where there is none: an agent that ends
    /// while it waits goes on waiting for the same answer.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn pending_key(&self) -> Result<KeyPair, Error> {
        let path = self.pending_path();
        if let Ok(text) = fs::read_to_string(&path)
            && let Ok(key) = KeyPair::from_pem(&text)
        {
            return Ok(key);
        }
        let key = KeyPair::generate()?;
        make_private(&self.directory)?;
        write_private(&path, &key.serialize_pem())?;
        Ok(key)
    }

    /// Forgets the key: its request was refused.
    pub fn forget_pending(&self) {
        let _ = fs::remove_file(self.pending_path());
    }

    fn pending_path(&self) -> PathBuf {
        self.directory.join(format!("{}.key.tmp", self.name))
    }

    fn forget_oldest(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let start = format!("{}-2", self.name);
        let mut ours: Vec<String> =
            names.filter(|name| name.starts_with(&start) && name.ends_with(".pem")).collect();
        ours.sort_unstable_by(|a, b| b.cmp(a));
        for name in ours.iter().skip(KEPT) {
            let _ = fs::remove_file(self.directory.join(name));
        }
    }
}

fn make_private(directory: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| Error::File { path: directory.to_owned(), source })
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    replace(path, text.as_bytes(), 0o600, Lasting::PowerCut)
        .map_err(|source| Error::File { path: path.to_owned(), source })
}
