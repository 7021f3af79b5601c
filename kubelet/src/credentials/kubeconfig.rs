//! The kubeconfig files of a node that joined: one by which it asks for its certificate, one that names
//! the certificate. Of a file that somebody else wrote only the cluster is taken over.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{Cluster, Kubeconfig, KubeconfigError};
use serde_json::{Value, json};

use super::store::{self, write_private};

/// A kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read kubeconfig {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// It names no cluster.
    #[error("kubeconfig {path:?} has no cluster for its current context")]
    NoCluster {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] store::Error),
}

/// How an API server is reached, and whose certificates it shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint(Value);

impl Endpoint {
    /// An address (`https://…`) and the authorities to believe, PEM.
    pub fn new(server: &str, authority_pem: &str) -> Self {
        Self(json!({
            "server": server,
            "certificate-authority-data": STANDARD.encode(authority_pem),
        }))
    }

    /// The cluster of a file's current context, or its only one.
    ///
    /// # Errors
    /// When the file cannot be read or names none.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        let file = read(path)?;
        let context = file.current_context.as_deref().unwrap_or_default();
        let wanted = file.contexts.iter().find(|one| one.name == context);
        let wanted = wanted.and_then(|one| one.context.as_ref()).map(|one| one.cluster.as_str());
        let found = match (wanted, file.clusters.as_slice()) {
            (Some(wanted), all) => all.iter().find(|one| one.name == wanted),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let cluster: &Cluster = found
            .and_then(|one| one.cluster.as_ref())
            .ok_or_else(|| Error::NoCluster { path: path.to_owned() })?;
        Ok(Self(serde_json::to_value(cluster).unwrap_or_default()))
    }
}

/// As whom the API server is asked.
pub enum User {
    /// Whoever a token stands for.
    Token(String),
    /// Whoever a certificate, with its key in the same file, is for.
    Certificate(PathBuf),
}

/// Writes a kubeconfig (0600; JSON, which is YAML).
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, endpoint: &Endpoint, user: &User) -> Result<(), Error> {
    let user = match user {
        User::Token(token) => json!({"token": token}),
        User::Certificate(file) => json!({"client-certificate": file, "client-key": file}),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": endpoint.0}],
        "users": [{"name": "default", "user": user}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "current-context": "default",
    });
    Ok(write_private(path, &format!("{config:#}\n"))?)
}

/// Copies a kubeconfig with everything it says, its relative paths made absolute.
///
/// # Errors
/// When it cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let file = serde_json::to_value(read(from)?).unwrap_or_default();
    Ok(write_private(to, &format!("{file:#}\n"))?)
}

/// Whether a kubeconfig says who asks, and not only whom.
///
/// # Errors
/// When it cannot be read.
pub fn has_user(path: &Path) -> Result<bool, Error> {
    let file = read(path)?;
    let says = |user: &kube::config::AuthInfo| {
        user.token.is_some()
            || user.token_file.is_some()
            || user.client_certificate.is_some()
            || user.client_certificate_data.is_some()
            || user.exec.is_some()
    };
    Ok(file.auth_infos.iter().filter_map(|one| one.auth_info.as_ref()).any(says))
}

/// Whether a kubeconfig names this file as its certificate.
pub fn names_certificate(path: &Path, certificate: &Path) -> bool {
    let Ok(file) = read(path) else { return false };
    let mut users = file.auth_infos.iter().filter_map(|one| one.auth_info.as_ref());
    users
        .any(|user| user.client_certificate.as_deref().is_some_and(|p| Path::new(p) == certificate))
}

fn read(path: &Path) -> Result<Kubeconfig, Error> {
    Kubeconfig::read_from(path)
        .map_err(|source| Error::Read { path: path.to_owned(), source: Box::new(source) })
}
