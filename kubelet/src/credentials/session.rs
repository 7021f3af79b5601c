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
use tokio::time::Instant;
use tower_service::Service;

use crate::meters::{ASKED, ASKED_TIME, Meters};

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
    connect(path).await.map(|opened| (opened.client, opened.authorities))
}

/// What a kubeconfig gives.
struct Opened {
    client: kube::Client,
    authorities: Vec<Vec<u8>>,
    /// The API server's host and port.
    host: String,
}

async fn connect(path: &Path) -> Result<Opened, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(read)?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(read)?;
    let authorities = config.root_cert.clone().unwrap_or_default();
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let client = kube::Client::try_from(config)
        .map_err(|source| Error::Connect { path: path.to_owned(), source: Box::new(source) })?;
    Ok(Opened { client, authorities, host })
}

/// A connection by a kubeconfig.
#[derive(Clone)]
pub struct Session {
    kubeconfig: PathBuf,
    current: Arc<RwLock<kube::Client>>,
    handed: kube::Client,
    authorities: Vec<Vec<u8>>,
    meters: Meters,
}

impl Session {
    /// Opens it; nothing is sent yet. Requests are counted. Must be called inside a runtime.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn open(kubeconfig: &Path, meters: Meters) -> Result<Self, Error> {
        let Opened { client, authorities, host } = connect(kubeconfig).await?;
        let namespace = client.default_namespace().to_owned();
        let current = Arc::new(RwLock::new(client));
        let (to, host) = (Arc::clone(&current), host.into());
        let passing = Passing { current: to, meters: meters.clone(), host };
        let handed = kube::Client::new(passing, namespace);
        Ok(Self { kubeconfig: kubeconfig.to_owned(), current, handed, authorities, meters })
    }

    /// The client that follows every exchange.
    pub fn client(&self) -> kube::Client {
        self.handed.clone()
    }

    /// What its requests are counted in.
    pub fn meters(&self) -> &Meters {
        &self.meters
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
struct Passing {
    current: Arc<RwLock<kube::Client>>,
    meters: Meters,
    host: Arc<str>,
}

impl Service<Request<Body>> for Passing {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, kube::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (meters, host) = (self.meters.clone(), Arc::clone(&self.host));
        Box::pin(async move {
            let method = request.method().clone();
            let begun = Instant::now();
            let answer = client.send(request).await;
            meters.time(&ASKED_TIME, &[&host, method.as_str()], begun.elapsed());
            // As upstream, one that was not answered.
            let code =
                answer.as_ref().map_or("<error>".into(), |a| a.status().as_u16().to_string());
            meters.count(&ASKED, &[&code, &host, method.as_str()]);
            answer
        })
    }
}
