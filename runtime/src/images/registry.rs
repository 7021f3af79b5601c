//! Speaks the OCI distribution protocol to one registry: manifests and blobs, with authentication.
//!
//! Over `reqwest` and `http-auth`, which are also the parts below the `oci-client` crate. That crate
//! reads bodies without a bound and hides the `Content-Type`, both of which a node that pulls from
//! strangers needs.
//!
//! Credentials go to the registry itself or to the token service it names over TLS, never to where a
//! blob is redirected (CVE-2020-15157), and never into an error text.

use std::error::Error as _;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use super::auth;
use super::digest::Digest;
use super::manifest::MAX_DOCUMENT_BYTES;
use super::reference::Reference;
use crate::interface::Credentials;

/// How often a request is tried when the registry is overloaded or the connection breaks.
const ATTEMPTS: u32 = 4;
/// The longest wait before a further attempt, whatever the registry asks for.
const LONGEST_DELAY: Duration = Duration::from_secs(20);

/// Why a registry did not deliver.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Failure {
    /// It cannot be reached or is out of service.
    #[error("{0}")]
    Unavailable(String),
    /// It answered, and the answer is no.
    #[error("{0}")]
    Refused(String),
}

/// Blob content as it arrives.
pub(crate) type ByteStream = BoxStream<'static, Result<Bytes, Failure>>;

/// The HTTP side shared by all pulls.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new() -> Result<Self, reqwest::Error> {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Another part of the process may have been faster, with the same provider.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let redirects = reqwest::redirect::Policy::custom(|attempt| {
            let downgrade = attempt.previous().last().is_some_and(|u| u.scheme() == "https")
                && attempt.url().scheme() != "https";
            if downgrade || attempt.previous().len() > 5 {
                attempt.error("refused redirect")
            } else {
                attempt.follow()
            }
        });
        let http = reqwest::Client::builder()
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(30))
            .redirect(redirects)
            .no_proxy()
            .build()?;
        Ok(Self { http })
    }
}

/// One repository of a registry, under one set of credentials.
pub(crate) struct Session {
    client: Client,
    base: String,
    repository: String,
    loopback: bool,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A manifest as the registry sent it.
pub(crate) struct RawDocument {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
}

struct Request<'a> {
    path: String,
    accept: Option<&'a str>,
    offset: u64,
}

impl Session {
    pub(crate) fn new(
        client: Client,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Self {
        let loopback = reference.registry.is_loopback();
        let scheme = if loopback { "http" } else { "https" };
        Self {
            client,
            base: format!("{scheme}://{}/v2", reference.registry.api_authority()),
            repository: reference.repository.as_str().to_owned(),
            loopback,
            credentials,
            authorization: Mutex::new(None),
        }
    }

    /// A manifest or index by tag or digest, unverified, at most [`MAX_DOCUMENT_BYTES`] long.
    pub(crate) async fn manifest(
        &self,
        target: &str,
        accept: &str,
    ) -> Result<RawDocument, Failure> {
        let request =
            Request { path: format!("manifests/{target}"), accept: Some(accept), offset: 0 };
        let response = self.get(&request).await?;
        let content_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let bytes = self.body(response, MAX_DOCUMENT_BYTES).await?;
        Ok(RawDocument { bytes, content_type })
    }

    /// A blob's bytes from `offset` on, unverified.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<ByteStream, Failure> {
        let request = Request { path: format!("blobs/{digest}"), accept: None, offset };
        let response = self.get(&request).await?;
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            _ => offset,
        };
        let secrets = auth::secrets(self.credentials.as_ref());
        let stream = response
            .bytes_stream()
            .map(move |chunk| chunk.map_err(|error| transport_failure(error, &secrets)));
        Ok(skip_bytes(stream.boxed(), skip))
    }

    async fn get(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let mut delay = Duration::from_millis(300);
        let mut attempt = 1;
        loop {
            let outcome = self.get_once(request).await;
            let (failure, wait) = match outcome {
                Ok(response) if is_overload(response.status()) => {
                    let wait = retry_after(&response).unwrap_or(delay);
                    let status = response.status();
                    (Failure::Unavailable(format!("unexpected status {status}")), wait)
                }
                Ok(response) => return self.accepted(response).await,
                Err(failure) => (failure, delay),
            };
            if attempt == ATTEMPTS || matches!(failure, Failure::Refused(_)) {
                return Err(failure);
            }
            tracing::debug!(path = request.path, %failure, attempt, "registry request retried");
            tokio::time::sleep(wait.min(LONGEST_DELAY)).await;
            attempt += 1;
            delay *= 2;
        }
    }

    async fn get_once(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let response = self.send(request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges = auth::challenges(response.headers());
        let Some(authorization) = self.authorize(&challenges).await? else {
            return Ok(response);
        };
        if let Ok(mut slot) = self.authorization.lock() {
            *slot = Some(authorization);
        }
        self.send(request).await
    }

    async fn send(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let url = format!("{}/{}/{}", self.base, self.repository, request.path);
        let mut builder = self.client.http.get(url);
        if let Some(accept) = request.accept {
            builder = builder.header(ACCEPT, accept);
        }
        if request.offset > 0 {
            builder = builder.header(RANGE, format!("bytes={}-", request.offset));
        }
        let authorization = self.authorization.lock().ok().and_then(|slot| slot.clone());
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        builder.send().await.map_err(|error| self.transport(error))
    }

    /// The header that answers a challenge, when there is anything to answer with.
    async fn authorize(
        &self,
        challenges: &auth::Challenges,
    ) -> Result<Option<HeaderValue>, Failure> {
        if let Some(Credentials::Bearer(token)) = &self.credentials {
            return auth::bearer(token).map(Some);
        }
        if let Some(challenge) = &challenges.bearer {
            let realm = self.token_service(&challenge.realm)?;
            return self.token(realm, challenge.service.as_deref()).await.map(Some);
        }
        match (&self.credentials, challenges.basic) {
            (Some(Credentials::Basic { username, password }), true) => {
                auth::basic(username, password).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Where tokens are asked for: by TLS, or on loopback for a loopback registry.
    fn token_service(&self, realm: &str) -> Result<Url, Failure> {
        let refused = || Failure::Refused("the registry names an unusable token service".into());
        let url = Url::parse(realm).map_err(|_| refused())?;
        let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.loopback && local => Ok(url),
            _ => Err(refused()),
        }
    }

    async fn token(&self, mut realm: Url, service: Option<&str>) -> Result<HeaderValue, Failure> {
        let scope = format!("repository:{}:pull", self.repository);
        realm.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = service {
            realm.query_pairs_mut().append_pair("service", service);
        }
        let mut builder = self.client.http.get(realm);
        if let Some(Credentials::Basic { username, password }) = &self.credentials {
            builder = builder.header(AUTHORIZATION, auth::basic(username, password)?);
        }
        let response = builder.send().await.map_err(|error| self.transport(error))?;
        if is_overload(response.status()) {
            let message = format!("token service: unexpected status {}", response.status());
            return Err(Failure::Unavailable(message));
        }
        if !response.status().is_success() {
            let message = format!(
                "failed to authorize: token service: unexpected status {}",
                response.status()
            );
            return Err(Failure::Refused(message));
        }
        let body = self.body(response, 1 << 20).await?;
        auth::token(&body)
    }

    async fn accepted(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let message = match status {
            StatusCode::NOT_FOUND => "not found".to_owned(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "pull access denied, repository does not exist or may require authorization".into()
            }
            other => format!("unexpected status {other}"),
        };
        Err(Failure::Refused(message))
    }

    async fn body(&self, mut response: Response, limit: u64) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.transport(e))? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > limit {
                let message = format!("document is longer than {limit} bytes");
                return Err(Failure::Refused(message));
            }
        }
        Ok(body)
    }

    fn transport(&self, error: reqwest::Error) -> Failure {
        transport_failure(error, &auth::secrets(self.credentials.as_ref()))
    }
}

fn is_overload(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// The chain of causes, without URLs (a redirected one may carry a signature) and secrets.
fn transport_failure(error: reqwest::Error, secrets: &[String]) -> Failure {
    let refused = error.is_redirect() || error.is_builder();
    let error = error.without_url();
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    let message = auth::redact(message, secrets);
    if refused { Failure::Refused(message) } else { Failure::Unavailable(message) }
}

/// Drops the first `count` bytes, for servers that ignore the range.
fn skip_bytes(stream: ByteStream, count: u64) -> ByteStream {
    if count == 0 {
        return stream;
    }
    stream
        .scan(count, |left, chunk| {
            let kept = chunk.map(|mut bytes| {
                let dropped = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= dropped as u64;
                bytes.split_off(dropped)
            });
            futures::future::ready(Some(kept))
        })
        .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_resumed_stream_leaves_out_what_was_already_read() {
        let chunks = [&b"abc"[..], b"def", b"g"];
        let stream = futures::stream::iter(chunks.map(|c| Ok(Bytes::from_static(c)))).boxed();
        let read: Vec<u8> =
            skip_bytes(stream, 4).map(|chunk| chunk.unwrap().to_vec()).concat().await;
        assert_eq!(read, b"efg");
    }

    #[test]
    fn credentials_go_only_to_token_services_over_tls() {
        let session = |name: &str| {
            let reference = Reference::parse(name).unwrap();
            Session::new(Client::new().unwrap(), &reference, None)
        };
        let remote = session("registry.example/a");
        assert!(remote.token_service("https://auth.example/token").is_ok());
        assert!(remote.token_service("http://registry.example/token").is_err());
        assert!(remote.token_service("http://127.0.0.1/token").is_err());
        assert!(remote.token_service("file:///etc/passwd").is_err());
        let local = session("127.0.0.1:5000/a");
        assert!(local.token_service("http://127.0.0.1:5001/token").is_ok());
        assert!(local.token_service("http://example.com/token").is_err());
    }
}
