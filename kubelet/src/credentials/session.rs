//! A connection to the API server whose credentials can be exchanged while it is used.
//!
//! The client that is handed out passes each request to the client of the credentials in force. After
//! an exchange new requests take new connections; what is under way ends on the old ones.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use axum::http::{Request, Response};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tower_service::Service;

/// A kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It, or a file that it names, cannot be read.
    #[error("cannot use kubeconfig {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// Its credentials cannot be used.
    #[error("cannot connect with kubeconfig {path:?}")]
    Connect {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The client of a kubeconfig, as the file is now.
///
/// # Errors
/// When it cannot be used.
pub async fn client(path: &Path) -> Result<(kube::Client, Vec<Vec<u8>>), Error> {
    let read = |source| Error::Read { path: path.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(read)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(read)?;
    let authorities = config.root_cert.clone().unwrap_or_default();
    let client = kube::Client::try_from(config)
        .map_err(|source| Error::Connect { path: path.to_owned(), source: Box::new(source) })?;
    Ok((client, authorities))
}

/// A connection by a kubeconfig.
#[derive(Clone)]
pub struct Session {
    kubeconfig: PathBuf,
    current: Arc<RwLock<kube::Client>>,
    handed: kube::Client,
    authorities: Vec<Vec<u8>>,
}

impl Session {
    /// Opens it; nothing is sent yet. Must be called inside a runtime.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn open(kubeconfig: &Path) -> Result<Self, Error> {
        let (first, authorities) = client(kubeconfig).await?;
        let namespace = first.default_namespace().to_owned();
        let current = Arc::new(RwLock::new(first));
        let handed = kube::Client::new(Passing(Arc::clone(&current)), namespace);
        Ok(Self { kubeconfig: kubeconfig.to_owned(), current, handed, authorities })
    }

    /// The client that follows every exchange.
    pub fn client(&self) -> kube::Client {
        self.handed.clone()
    }

    /// The authorities that the API server's certificate is held against, DER.
    pub fn authorities(&self) -> &[Vec<u8>] {
        &self.authorities
    }

    /// Reads the kubeconfig and what it names again, and uses that from now on.
    ///
    /// # Errors
    /// When it cannot be used; the session goes on as before.
    pub async fn reload(&self) -> Result<(), Error> {
        let (next, _) = client(&self.kubeconfig).await?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

/// Passes requests to the client in force.
struct Passing(Arc<RwLock<kube::Client>>);

impl Service<Request<Body>> for Passing {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, kube::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move { client.send(request).await })
    }
}
